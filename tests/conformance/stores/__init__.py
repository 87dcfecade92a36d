"""One file a store: each states ``STORES``, a tuple of :class:`tests.conformance.sinks.Store`."""
