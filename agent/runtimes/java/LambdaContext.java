package mayfly;

import java.lang.reflect.InvocationHandler;
import java.lang.reflect.Method;
import java.lang.reflect.Proxy;
import java.lang.reflect.Type;
import java.nio.charset.StandardCharsets;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.Supplier;

/**
 * The context of an invocation: a map, and seen through any interface that has getters for its entries, such as
 * com.amazonaws.services.lambda.runtime.Context of aws-lambda-java-core.
 */
final class LambdaContext {
    private LambdaContext() { }

    static Map<String, Object> of(Map<String, Object> function, Map<String, Object> call) {
        long deadline = ((Number) call.get("deadline_ms")).longValue();
        Map<String, Object> context = new LinkedHashMap<>();
        context.put("awsRequestId", call.get("request_id"));
        context.put("invokedFunctionArn", call.get("arn"));
        context.put("functionName", function.get("function_name"));
        context.put("functionVersion", function.get("function_version"));
        context.put("memoryLimitInMB", function.get("memory_limit_mb"));
        context.put("logGroupName", function.get("log_group"));
        context.put("logStreamName", function.get("log_stream"));
        context.put("remainingTimeInMillis", (Supplier<Object>) () -> (int) Math.max(deadline - System.currentTimeMillis(), 0));
        context.put("identity", identity(call.get("cognito_identity")));
        context.put("clientContext", client(call.get("client_context")));
        return context;
    }

    private static Object identity(Object json) {
        Map<String, Object> given = json instanceof String s && !s.isEmpty() ? Convert.object(Json.parse(s)) : Map.of();
        Map<String, Object> identity = new LinkedHashMap<>();
        identity.put("identityId", given.get("cognitoIdentityId"));
        identity.put("identityPoolId", given.get("cognitoIdentityPoolId"));
        return identity;
    }

    private static Object client(Object json) {
        if (!(json instanceof String s) || s.isEmpty()) {
            return null;
        }
        Map<String, Object> given = new LinkedHashMap<>(Convert.object(Json.parse(s)));
        given.put("environment", given.remove("env"));
        Map<String, Object> client = new LinkedHashMap<>();
        Convert.object(given.get("client")).forEach((name, value) -> client.put(camelCase(name), value));
        given.put("client", client);
        return given;
    }

    private static String camelCase(String name) {
        StringBuilder out = new StringBuilder();
        for (String word : name.split("_")) {
            out.append(out.isEmpty() || word.isEmpty() ? word : Character.toUpperCase(word.charAt(0)) + word.substring(1));
        }
        return out.toString();
    }

    /** The context as a parameter of a handler: a Map, or an interface. */
    static Object as(Map<String, Object> context, Type type) {
        Class<?> raw = Convert.rawClass(type);
        if (raw.isAssignableFrom(LinkedHashMap.class)) {
            Map<String, Object> now = new LinkedHashMap<>(context);
            now.replaceAll((name, value) -> value instanceof Supplier<?> s ? s.get() : value);
            return now;
        }
        return view(context, raw);
    }

    private static Object view(Map<String, Object> values, Class<?> type) {
        InvocationHandler handler = (proxy, method, arguments) -> {
            if (method.getDeclaringClass() == Object.class) {
                return ofObject(proxy, method, arguments, values);
            }
            if (method.getName().equals("getLogger")) {
                return logger(method.getReturnType());
            }
            String name = Convert.property(method, "get", 0);
            if (name != null && entry(values, name) != null) {
                return value(entry(values, name), method);
            }
            return method.isDefault() ? InvocationHandler.invokeDefault(proxy, method, arguments) : Convert.to(null, method.getReturnType());
        };
        return Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, handler);
    }

    /** Getters make MB of memoryLimitInMB small: names are compared without regard to case. */
    private static Object entry(Map<String, Object> values, String name) {
        for (Map.Entry<String, Object> e : values.entrySet()) {
            if (e.getKey().equalsIgnoreCase(name)) {
                return e.getValue() instanceof Supplier<?> s ? s.get() : e.getValue();
            }
        }
        return null;
    }

    private static Object value(Object value, Method method) {
        boolean nested = value instanceof Map && method.getReturnType().isInterface() && method.getReturnType() != Map.class;
        return nested ? view(Convert.object(value), method.getReturnType()) : Convert.to(value, method.getGenericReturnType());
    }

    private static Object ofObject(Object proxy, Method method, Object[] arguments, Object values) {
        return switch (method.getName()) {
            case "equals" -> proxy == arguments[0];
            case "hashCode" -> System.identityHashCode(proxy);
            default -> values.toString();
        };
    }

    /** An interface with methods log whose first argument is a text or bytes. */
    private static Object logger(Class<?> type) {
        return Proxy.newProxyInstance(type.getClassLoader(), new Class<?>[] {type}, (proxy, method, arguments) -> {
            if (method.getDeclaringClass() == Object.class) {
                return ofObject(proxy, method, arguments, "LambdaLogger");
            }
            Object message = arguments[0];
            String text = message instanceof byte[] bytes ? new String(bytes, StandardCharsets.UTF_8) : String.valueOf(message);
            System.out.print(text.endsWith("\n") ? text : text + "\n");
            return null;
        });
    }
}
