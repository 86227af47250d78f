package mayfly;

import java.io.ByteArrayInputStream;
import java.io.ByteArrayOutputStream;
import java.io.File;
import java.io.InputStream;
import java.io.OutputStream;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.Type;
import java.net.MalformedURLException;
import java.net.URL;
import java.net.URLClassLoader;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Map;

/** The method that a handler's name means: CLASS::METHOD, or CLASS for its method handleRequest. */
final class Handler {
    private static final String CONTEXT = "com.amazonaws.services.lambda.runtime.Context";
    private static final String LAYERS = "/opt/java/lib";

    private final Object target;
    private final Method method;

    private Handler(Object target, Method method) {
        this.target = target;
        this.method = method;
    }

    static Handler find(String name, String taskRoot) throws Throwable {
        String[] parts = name.split("::", -1);
        if (parts.length > 2 || parts[0].isEmpty() || parts[parts.length - 1].isEmpty()) {
            throw new Fault("Runtime.MalformedHandlerName", "Bad handler '" + name + "': it must look like package.Class::method or package.Class");
        }
        ClassLoader loader = new URLClassLoader(classPath(taskRoot), ClassLoader.getPlatformClassLoader());
        Thread.currentThread().setContextClassLoader(loader);
        Class<?> type;
        try {
            type = Class.forName(parts[0], true, loader);
        } catch (ClassNotFoundException e) {
            throw new Fault("java.lang.ClassNotFoundException", "Class not found: " + e.getMessage());
        } catch (ExceptionInInitializerError e) {
            throw e.getCause() == null ? e : e.getCause();
        }
        Method method = choose(type, parts.length == 2 ? parts[1] : "handleRequest");
        return new Handler(Modifier.isStatic(method.getModifiers()) ? null : instance(type), method);
    }

    /** Classes of the package first, then its jars and those of layers. */
    private static URL[] classPath(String taskRoot) throws MalformedURLException {
        List<URL> urls = new ArrayList<>(List.of(new File(taskRoot).toURI().toURL()));
        for (String dir : List.of(taskRoot, taskRoot + "/lib", LAYERS)) {
            File[] jars = new File(dir).listFiles((parent, name) -> name.endsWith(".jar"));
            if (jars != null) {
                Arrays.sort(jars);
                for (File jar : jars) {
                    urls.add(jar.toURI().toURL());
                }
            }
        }
        return urls.toArray(URL[]::new);
    }

    /** Of several methods of a name, the one with most parameters, as in Lambda. */
    private static Method choose(Class<?> type, String name) {
        Method method = Arrays.stream(type.getMethods())
            .filter(m -> m.getName().equals(name) && !m.isBridge() && !Modifier.isAbstract(m.getModifiers()) && fits(m.getParameterTypes()))
            .max(Comparator.comparingInt(Method::getParameterCount))
            .orElseThrow(() -> new Fault("java.lang.Exception",
                "No public method named " + name + " with appropriate method signature found on class " + type.getName()));
        method.setAccessible(true);
        return method;
    }

    private static boolean fits(Class<?>[] parameters) {
        int n = parameters.length;
        boolean streams = n > 1 && parameters[0] == InputStream.class && parameters[1] == OutputStream.class;
        return switch (n) {
            case 0, 1 -> true;
            case 2 -> streams || takesContext(parameters[1]);
            case 3 -> streams && takesContext(parameters[2]);
            default -> false;
        };
    }

    private static boolean takesContext(Class<?> type) {
        return type.isInterface();
    }

    private static Object instance(Class<?> type) throws Throwable {
        try {
            return type.getConstructor().newInstance();
        } catch (InvocationTargetException e) {
            throw e.getCause();
        } catch (NoSuchMethodException e) {
            throw new Fault("java.lang.Exception", "Class " + type.getName() + " has no public zero-argument constructor");
        }
    }

    /** Runs the method with the event that is in body from an offset on, and returns its answer as JSON, or what it wrote. */
    byte[] call(byte[] body, int from, Map<String, Object> context) throws Throwable {
        Type[] types = method.getGenericParameterTypes();
        Object[] arguments = new Object[types.length];
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        for (int i = 0; i < types.length; i++) {
            boolean last = i == types.length - 1 && i > 0 || ((types[i] instanceof Class<?> c) && c.getName().equals(CONTEXT));
            if (types[i] == InputStream.class) {
                arguments[i] = new ByteArrayInputStream(body, from, body.length - from);
            } else if (types[i] == OutputStream.class) {
                arguments[i] = out;
            } else {
                arguments[i] = last ? LambdaContext.as(context, types[i]) : event(Bootstrap.text(body, from, body.length - from), types[i]);
            }
        }
        Object result = run(arguments);
        return types.length > 1 && types[1] == OutputStream.class ? out.toByteArray() : answer(result);
    }

    private Object run(Object[] arguments) throws Throwable {
        try {
            return method.invoke(target, arguments);
        } catch (InvocationTargetException e) {
            throw e.getCause();
        }
    }

    private static Object event(String json, Type type) {
        try {
            return Convert.to(Json.parse(json), type);
        } catch (RuntimeException e) {
            throw new Fault("java.lang.RuntimeException", "An error occurred during JSON parsing", e);
        }
    }

    private static byte[] answer(Object result) {
        try {
            return Bootstrap.encode(result);
        } catch (RuntimeException | StackOverflowError e) {
            throw new Fault("java.lang.RuntimeException", "An error occurred during JSON serialization of response", e);
        }
    }
}
