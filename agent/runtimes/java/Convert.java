package mayfly;

import java.lang.reflect.Array;
import java.lang.reflect.Field;
import java.lang.reflect.GenericArrayType;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.ParameterizedType;
import java.lang.reflect.RecordComponent;
import java.lang.reflect.Type;
import java.lang.reflect.WildcardType;
import java.math.BigDecimal;
import java.math.BigInteger;
import java.time.Instant;
import java.time.temporal.TemporalAccessor;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Base64;
import java.util.Collection;
import java.util.Date;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;

/** Between JSON's values and Java's types: numbers, strings, enums, collections, maps, arrays, records and beans. */
final class Convert {
    private Convert() { }

    @SuppressWarnings("unchecked")
    static Map<String, Object> object(Object value) {
        return value == null ? Map.of() : (Map<String, Object>) value;
    }

    /** Makes a value of a type; IllegalArgumentException says what doesn't fit. */
    static Object to(Object value, Type type) {
        if (type instanceof WildcardType wild) {
            return to(value, wild.getUpperBounds()[0]);
        }
        if (type instanceof GenericArrayType array) {
            return array(list(value, type), rawClass(array.getGenericComponentType()), array.getGenericComponentType());
        }
        Class<?> raw = rawClass(type);
        if (value == null) {
            return raw.isPrimitive() ? Array.get(Array.newInstance(raw, 1), 0) : null;
        }
        if (raw == Object.class) {
            return value;
        }
        if (raw.isArray()) {
            return value instanceof String s && raw == byte[].class
                ? Base64.getDecoder().decode(s) : array(list(value, type), raw.getComponentType(), raw.getComponentType());
        }
        if (Map.class.isAssignableFrom(raw)) {
            return map(object(checked(value, Map.class, type)), raw, argument(type, 0), argument(type, 1));
        }
        if (Iterable.class.isAssignableFrom(raw)) {
            return collection(list(value, type), raw, argument(type, 0));
        }
        Object scalar = scalar(value, raw);
        return scalar != null ? scalar : structure(object(checked(value, Map.class, type)), raw);
    }

    static Class<?> rawClass(Type type) {
        if (type instanceof Class<?> c) {
            return c;
        }
        return type instanceof ParameterizedType p ? (Class<?>) p.getRawType() : Object.class;
    }

    private static Type argument(Type type, int i) {
        return type instanceof ParameterizedType p && p.getActualTypeArguments().length > i ? p.getActualTypeArguments()[i] : Object.class;
    }

    private static Object checked(Object value, Class<?> wanted, Type type) {
        if (!wanted.isInstance(value)) {
            throw new IllegalArgumentException("Cannot make a " + type.getTypeName() + " of " + clip(Json.write(value)));
        }
        return value;
    }

    private static String clip(String text) {
        return text.length() > 100 ? text.substring(0, 100) + "…" : text;
    }

    private static List<?> list(Object value, Type type) {
        return (List<?>) checked(value, List.class, type);
    }

    private static Object array(List<?> values, Class<?> component, Type element) {
        Object array = Array.newInstance(component, values.size());
        for (int i = 0; i < values.size(); i++) {
            Array.set(array, i, to(values.get(i), element));
        }
        return array;
    }

    private static Object collection(List<?> values, Class<?> raw, Type element) {
        Collection<Object> all = raw.isAssignableFrom(ArrayList.class) ? new ArrayList<>()
            : raw.isAssignableFrom(LinkedHashSet.class) ? new LinkedHashSet<>() : create(raw);
        values.forEach(v -> all.add(to(v, element)));
        return all;
    }

    private static Object map(Map<String, Object> values, Class<?> raw, Type key, Type value) {
        Map<Object, Object> all = raw.isAssignableFrom(LinkedHashMap.class) ? new LinkedHashMap<>() : create(raw);
        values.forEach((k, v) -> all.put(to(k, key), to(v, value)));
        return all;
    }

    /** A value that is no structure; null if the type is one. */
    private static Object scalar(Object value, Class<?> raw) {
        String text = String.valueOf(value);
        boolean nested = value instanceof Map || value instanceof List;
        if (raw == String.class || raw == CharSequence.class) {
            return nested ? checked(value, String.class, raw) : text;
        }
        if (raw == boolean.class || raw == Boolean.class) {
            return value instanceof String s ? Boolean.valueOf(s) : checked(value, Boolean.class, raw);
        }
        if (raw == char.class || raw == Character.class) {
            return text.length() == 1 ? text.charAt(0) : checked(value, Character.class, raw);
        }
        if (raw.isPrimitive() || Number.class.isAssignableFrom(raw)) {
            return nested ? checked(value, Number.class, raw) : number(new BigDecimal(text), raw);
        }
        if (raw.isEnum()) {
            return Arrays.stream(raw.getEnumConstants()).filter(c -> ((Enum<?>) c).name().equals(text)).findFirst()
                .orElseThrow(() -> new IllegalArgumentException(raw.getName() + " has no " + clip(text)));
        }
        if (raw == Instant.class) {
            return Instant.parse(text);
        }
        return raw == Date.class ? new Date(value instanceof Number n ? n.longValue() : Instant.parse(text).toEpochMilli()) : null;
    }

    private static Object number(BigDecimal n, Class<?> raw) {
        return switch (raw.getSimpleName()) {
            case "int", "Integer" -> n.intValueExact();
            case "long", "Long" -> n.longValueExact();
            case "double", "Double", "Number" -> n.doubleValue();
            case "float", "Float" -> n.floatValue();
            case "short", "Short" -> n.shortValueExact();
            case "byte", "Byte" -> n.byteValueExact();
            case "BigInteger" -> n.toBigIntegerExact();
            case "BigDecimal" -> n;
            default -> throw new IllegalArgumentException("Cannot make a " + raw.getName() + " of a number");
        };
    }

    /** Records by their components, beans by their setters and public fields. Unknown names are left out. */
    private static Object structure(Map<String, Object> values, Class<?> raw) {
        try {
            return raw.isRecord() ? record(values, raw) : bean(values, raw);
        } catch (InvocationTargetException e) {
            throw new IllegalArgumentException("Cannot make a " + raw.getName(), e.getCause());
        } catch (ReflectiveOperationException e) {
            throw new IllegalArgumentException("Cannot make a " + raw.getName(), e);
        }
    }

    private static Object record(Map<String, Object> values, Class<?> raw) throws ReflectiveOperationException {
        RecordComponent[] parts = raw.getRecordComponents();
        Object[] arguments = new Object[parts.length];
        for (int i = 0; i < parts.length; i++) {
            arguments[i] = to(values.get(parts[i].getName()), parts[i].getGenericType());
        }
        var constructor = raw.getDeclaredConstructor(Arrays.stream(parts).map(RecordComponent::getType).toArray(Class<?>[]::new));
        constructor.setAccessible(true);
        return constructor.newInstance(arguments);
    }

    private static Object bean(Map<String, Object> values, Class<?> raw) throws ReflectiveOperationException {
        Object bean = create(raw);
        for (Field field : raw.getFields()) {
            if (!Modifier.isStatic(field.getModifiers()) && !Modifier.isFinal(field.getModifiers()) && values.containsKey(field.getName())) {
                field.set(bean, to(values.get(field.getName()), field.getGenericType()));
            }
        }
        for (Method method : raw.getMethods()) {
            String name = property(method, "set", 1);
            if (name != null && values.containsKey(name)) {
                method.setAccessible(true);
                method.invoke(bean, to(values.get(name), method.getGenericParameterTypes()[0]));
            }
        }
        return bean;
    }

    @SuppressWarnings("unchecked")
    private static <T> T create(Class<?> raw) {
        try {
            var constructor = raw.getDeclaredConstructor();
            constructor.setAccessible(true);
            return (T) constructor.newInstance();
        } catch (InvocationTargetException e) {
            throw new IllegalArgumentException("Cannot make a " + raw.getName(), e.getCause());
        } catch (ReflectiveOperationException e) {
            throw new IllegalArgumentException("Cannot make a " + raw.getName() + ": it needs a constructor without parameters", e);
        }
    }

    /** The property of a getter or setter: aBC of getABC as abc, as Jackson has it. Null if it is none. */
    static String property(Method method, String prefix, int parameters) {
        String name = method.getName();
        if (!name.startsWith(prefix) || name.length() == prefix.length() || method.getParameterCount() != parameters
            || Modifier.isStatic(method.getModifiers()) || method.getDeclaringClass() == Object.class || method.isBridge()) {
            return null;
        }
        StringBuilder property = new StringBuilder(name.substring(prefix.length()));
        for (int i = 0; i < property.length() && Character.isUpperCase(property.charAt(i)); i++) {
            property.setCharAt(i, Character.toLowerCase(property.charAt(i)));
        }
        return property.toString();
    }

    /** What JSON can write of a value: a String, Map, Iterable, number, boolean or null. */
    static Object plain(Object value) {
        if (value == null || value instanceof String || value instanceof Boolean || value instanceof Map || value instanceof Iterable) {
            return value;
        }
        if (value instanceof Number n) {
            return n instanceof Double || n instanceof Float ? finite(n) : n instanceof BigDecimal || n instanceof BigInteger ? n : Long.valueOf(n.longValue());
        }
        if (value instanceof CharSequence || value instanceof Character || value instanceof TemporalAccessor || value instanceof java.util.UUID) {
            return value.toString();
        }
        if (value instanceof Enum<?> e) {
            return e.name();
        }
        if (value instanceof Date d) {
            return d.getTime();
        }
        if (value instanceof Optional<?> o) {
            return plain(o.orElse(null));
        }
        if (value instanceof byte[] bytes) {
            return Base64.getEncoder().encodeToString(bytes);
        }
        return value.getClass().isArray() ? elements(value) : properties(value);
    }

    private static Object finite(Number n) {
        return Double.isFinite(n.doubleValue()) ? (Object) n : n.toString();
    }

    private static List<Object> elements(Object array) {
        List<Object> all = new ArrayList<>(Array.getLength(array));
        for (int i = 0; i < Array.getLength(array); i++) {
            all.add(Array.get(array, i));
        }
        return all;
    }

    private static Map<String, Object> properties(Object value) {
        Map<String, Object> all = new LinkedHashMap<>();
        try {
            if (value instanceof Record) {
                for (RecordComponent part : value.getClass().getRecordComponents()) {
                    all.put(part.getName(), get(part.getAccessor(), value));
                }
                return all;
            }
            for (Field field : value.getClass().getFields()) {
                if (!Modifier.isStatic(field.getModifiers())) {
                    all.put(field.getName(), field.get(value));
                }
            }
            Method[] methods = value.getClass().getMethods();
            Arrays.sort(methods, java.util.Comparator.comparing(Method::getName)); // Java has no order of its own
            for (Method method : methods) {
                String name = Optional.ofNullable(property(method, "get", 0)).orElse(property(method, "is", 0));
                if (name != null && (method.getName().startsWith("get") || Set.of(boolean.class, Boolean.class).contains(method.getReturnType()))) {
                    all.put(name, get(method, value));
                }
            }
            return all;
        } catch (ReflectiveOperationException e) {
            throw new IllegalArgumentException("Cannot write a " + value.getClass().getName(), e);
        }
    }

    private static Object get(Method method, Object value) throws ReflectiveOperationException {
        method.setAccessible(true);
        return method.invoke(value);
    }
}
