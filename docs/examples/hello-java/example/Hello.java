package example;

import java.util.Map;

public class Hello {
    /** What the function uses of Lambda's context. */
    public interface Context {
        String getFunctionName();
    }

    public Map<String, Object> handle(Map<String, Object> event, Context context) {
        return Map.of("greeting", "Hello from " + context.getFunctionName());
    }
}
