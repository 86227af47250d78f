package mayfly;

import java.io.IOException;
import java.lang.reflect.Field;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.TimeZone;

/**
 * Runs a Java function inside a sandbox of Mayfly.
 *
 * <p>It dials the agent's socket, says Hello, loads the class that Load names, and answers one Invoke after the other.
 * The frames are described in agent/frame. It needs nothing but the JDK, and none of its classes is visible to the function.
 */
final class Bootstrap {
    private static final int PROTOCOL = 1;
    private static final String SOCKET_PATH = "/run/mayfly/agent.sock";

    private static final int HELLO = 1, READY = 2, INIT_ERROR = 3, RESULT = 4, ERROR = 5;
    private static final int LOAD = 16, INVOKE = 17, SHUTDOWN = 18;

    /** Lambda's limit for an answer, in bytes. */
    private static final int MAX_RESULT = 6291556;

    private final Connection connection;
    private Map<String, Object> function;
    private Handler handler;

    private Bootstrap(Connection connection) {
        this.connection = connection;
    }

    public static void main(String[] args) throws IOException {
        new Bootstrap(new Connection(SOCKET_PATH)).run();
        System.exit(0); // threads that the function left behind must not hold it
    }

    private void run() throws IOException {
        connection.send(HELLO, encode(Map.of("protocol", PROTOCOL, "runtime", "java" + Runtime.version().feature())));
        warmUp();
        for (Connection.Frame frame = connection.receive(); frame != null; frame = connection.receive()) {
            switch (frame.type()) {
                case INVOKE -> invoke(frame.body());
                case LOAD -> load(frame.body());
                case SHUTDOWN -> {
                    return;
                }
                default -> { }
            }
        }
    }

    /** Loads the classes of a call while the sandbox waits to be claimed. */
    private static void warmUp() {
        Object value = Json.parse("{\"a\":[1,2.5,\"b\\n\",true,null]}");
        encode(Convert.to(value, Object.class));
        Failure.of(new IllegalStateException("warm"));
    }

    /** A failure is told to the agent, and ends the process. */
    private void load(byte[] body) throws IOException {
        try {
            function = Convert.object(Json.parse(text(body, 0, body.length)));
            putEnvironment(Convert.object(function.get("env")));
            handler = Handler.find((String) function.get("handler"), (String) function.get("task_root"));
        } catch (Throwable e) {
            Failure failure = Failure.of(e);
            failure.report();
            connection.send(INIT_ERROR, encode(failure.fields()));
            Runtime.getRuntime().halt(1);
        }
        connection.send(READY, new byte[0]);
    }

    /** Makes System.getenv and new processes see the function's variables. */
    @SuppressWarnings("unchecked")
    private static void putEnvironment(Map<String, Object> variables) throws ReflectiveOperationException {
        Map<String, String> view = System.getenv();
        Field field = view.getClass().getDeclaredField("m");
        field.setAccessible(true);
        Map<String, String> environment = (Map<String, String>) field.get(view);
        variables.forEach((name, value) -> environment.put(name, (String) value));
        String zone = environment.getOrDefault("TZ", "UTC");
        TimeZone.setDefault(TimeZone.getTimeZone(zone.startsWith(":") ? zone.substring(1) : zone));
    }

    private void invoke(byte[] body) throws IOException {
        int size = ByteBuffer.wrap(body).getInt();
        Map<String, Object> call = Convert.object(Json.parse(text(body, 4, size)));
        if (call.get("trace_id") instanceof String trace) {
            System.setProperty("com.amazonaws.xray.traceHeader", trace);
        }
        int type = RESULT;
        byte[] answer;
        try {
            answer = checked(handler.call(body, 4 + size, LambdaContext.of(function, call)));
        } catch (Throwable e) {
            Failure failure = Failure.of(e);
            failure.report();
            Map<String, Object> fields = failure.fields();
            fields.put("requestId", call.get("request_id"));
            type = ERROR;
            answer = encode(fields);
        }
        System.out.flush();
        System.err.flush();
        connection.send(type, answer);
    }

    private static byte[] checked(byte[] answer) {
        if (answer.length > MAX_RESULT) {
            throw new Fault("Function.ResponseSizeTooLarge", "Response payload size (" + answer.length
                + " bytes) exceeded maximum allowed payload size (" + MAX_RESULT + " bytes).");
        }
        return answer;
    }

    static String text(byte[] bytes, int from, int size) {
        return new String(bytes, from, size, StandardCharsets.UTF_8);
    }

    static byte[] encode(Object value) {
        return Json.write(value).getBytes(StandardCharsets.UTF_8);
    }
}
