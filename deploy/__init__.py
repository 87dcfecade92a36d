"""How the product is run: local servers without Docker, the image, and what Compose needs."""
