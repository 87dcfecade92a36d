package outbox.local;

import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * Runs one Elasticsearch node in this JVM, in place of the launcher of the full distribution.
 *
 * <p>Arguments: the home folder, then any number of {@code key=value} settings, the later winning.
 */
public final class LocalNode {
    private static final long CLOSE_SECONDS = 15;

    private LocalNode() {}

    public static void main(String[] arguments) {
        // A thread that dies of an Error leaves a node that accepts work and never finishes it: end the process.
        Thread.setDefaultUncaughtExceptionHandler((thread, problem) -> {
            problem.printStackTrace();
            if (problem instanceof Error) {
                Runtime.getRuntime().halt(2);
            }
        });
        try {
            run(Path.of(arguments[0]).toAbsolutePath(), arguments);
        } catch (Throwable problem) {
            // Pools that a failed start left behind would keep the JVM alive.
            problem.printStackTrace();
            Runtime.getRuntime().halt(1);
        }
    }

    private static void run(Path home, String[] arguments) throws Exception {
        Settings settings = settings(home, arguments);
        LogConfigurator.setClusterName(settings.get("cluster.name"));
        LogConfigurator.setNodeName(settings.get("node.name"));
        LogConfigurator.configureESLogging();
        LogConfigurator.configureWithoutConfig(settings);

        Environment environment = new Environment(settings, home.resolve("config"));
        PluginsLoader plugins = PluginsLoader.createPluginsLoader(
            PluginsLoader.loadModulesBundles(environment.modulesDir(), false),
            PluginsLoader.loadPluginsBundles(environment.pluginsDir(), false),
            Map.of(),
            false);
        Node node = new Node(environment, plugins);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> close(node), "close-node"));
        node.start();
        new java.util.concurrent.CountDownLatch(1).await();
    }

    private static Settings settings(Path home, String[] arguments) {
        Settings.Builder builder = Settings.builder().put("path.home", home.toString());
        for (int index = 1; index < arguments.length; index++) {
            String[] pair = arguments[index].split("=", 2);
            builder.put(pair[0], pair[1]);
        }
        return builder.build();
    }

    private static void close(Node node) {
        try {
            node.prepareForClose();
            node.close();
            node.awaitClose(CLOSE_SECONDS, TimeUnit.SECONDS);
        } catch (Exception problem) {
            problem.printStackTrace();
        }
    }
}
