package mayfly;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** How an exception looks to the caller of the function, and in the log. */
record Failure(String type, String message, List<String> trace, Failure cause) {
    /** A failure with more text than this is cut: it must fit in a frame. */
    private static final int MAX_TEXT = 256 << 10;
    private static final int MAX_TRACE = 200, MAX_CAUSES = 8;

    static Failure of(Throwable e) {
        return of(e, MAX_CAUSES);
    }

    private static Failure of(Throwable e, int causes) {
        Throwable cause = e.getCause();
        return new Failure(e instanceof Fault fault ? fault.type : e.getClass().getName(), messageOf(e), traceOf(e),
            cause == null || cause == e || causes == 0 ? null : of(cause, causes - 1));
    }

    private static String messageOf(Throwable e) {
        String message;
        try {
            message = e.getMessage();
        } catch (RuntimeException broken) {
            message = "the exception's message cannot be made";
        }
        return message != null && message.length() > MAX_TEXT ? message.substring(0, MAX_TEXT) + "…" : message;
    }

    /** The frames down to the function's own code. */
    private static List<String> traceOf(Throwable e) {
        List<String> lines = new ArrayList<>();
        for (StackTraceElement element : e.getStackTrace()) {
            String name = element.getClassName();
            if (name.startsWith("jdk.internal.reflect.") || name.startsWith("mayfly.") || lines.size() == MAX_TRACE) {
                break;
            }
            lines.add(element.toString());
        }
        return lines;
    }

    Map<String, Object> fields() {
        Map<String, Object> fields = new LinkedHashMap<>();
        fields.put("errorMessage", message);
        fields.put("errorType", type);
        fields.put("stackTrace", trace);
        if (cause != null) {
            fields.put("cause", cause.fields());
        }
        return fields;
    }

    void report() {
        StringBuilder text = new StringBuilder("[ERROR] ");
        append(text);
        System.out.print(text);
        System.out.flush();
    }

    private void append(StringBuilder text) {
        text.append(type).append(": ").append(message).append('\n');
        trace.forEach(line -> text.append("\tat ").append(line).append('\n'));
        if (cause != null) {
            cause.append(text.append("Caused by: "));
        }
    }
}
