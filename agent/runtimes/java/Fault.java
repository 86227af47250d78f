package mayfly;

/** A failure with a type of Lambda's or a Java class's name, and without a stack trace. */
final class Fault extends RuntimeException {
    private static final long serialVersionUID = 1;

    final String type;

    Fault(String type, String message) {
        this(type, message, null);
    }

    Fault(String type, String message, Throwable cause) {
        super(message, cause, false, false);
        this.type = type;
    }
}
