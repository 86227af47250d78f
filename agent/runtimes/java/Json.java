package mayfly;

import java.math.BigDecimal;
import java.math.BigInteger;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** JSON as maps, lists, strings, numbers, booleans and null. What else there is to write is made of these by Convert. */
final class Json {
    private static final int MAX_DEPTH = 500;

    private final String text;
    private int at;
    private int depth;

    private Json(String text) {
        this.text = text;
    }

    /** Numbers are the smallest of Integer, Long, BigInteger that holds them, or Double. */
    static Object parse(String text) {
        Json json = new Json(text);
        Object value = json.value();
        json.space();
        if (json.at < text.length()) {
            throw json.error("there is more after the value");
        }
        return value;
    }

    private IllegalArgumentException error(String what) {
        return new IllegalArgumentException("JSON: " + what + " at character " + at);
    }

    private void space() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private Object value() {
        space();
        if (at == text.length()) {
            throw error("a value is missing");
        }
        return switch (text.charAt(at)) {
            case '{' -> nested(this::object);
            case '[' -> nested(this::array);
            case '"' -> string();
            case 't' -> word("true", true);
            case 'f' -> word("false", false);
            case 'n' -> word("null", null);
            default -> number();
        };
    }

    private Object nested(java.util.function.Supplier<Object> read) {
        if (++depth > MAX_DEPTH) {
            throw error("more than " + MAX_DEPTH + " levels");
        }
        at++;
        Object value = read.get();
        depth--;
        return value;
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) {
            throw error("an unknown word");
        }
        at += word.length();
        return value;
    }

    private boolean take(char c) {
        space();
        boolean there = at < text.length() && text.charAt(at) == c;
        if (there) {
            at++;
        }
        return there;
    }

    private void expect(char c) {
        if (!take(c)) {
            throw error("'" + c + "' is missing");
        }
    }

    private Object object() {
        Map<String, Object> map = new LinkedHashMap<>();
        if (take('}')) {
            return map;
        }
        do {
            space();
            if (at == text.length() || text.charAt(at) != '"') {
                throw error("a name is missing");
            }
            String name = string();
            expect(':');
            map.put(name, value());
        } while (take(','));
        expect('}');
        return map;
    }

    private Object array() {
        List<Object> list = new ArrayList<>();
        if (take(']')) {
            return list;
        }
        do {
            list.add(value());
        } while (take(','));
        expect(']');
        return list;
    }

    private String string() {
        int start = ++at;
        StringBuilder built = null;
        for (; at < text.length(); at++) {
            char c = text.charAt(at);
            if (c == '"') {
                String rest = text.substring(start, at++);
                return built == null ? rest : built.append(rest).toString();
            }
            if (c < ' ') {
                throw error("a control character in a string");
            }
            if (c == '\\') {
                built = (built == null ? new StringBuilder() : built).append(text, start, at);
                built.append(escaped());
                start = at + 1;
            }
        }
        throw error("a string does not end");
    }

    /** Reads what follows a backslash, and stays on its last character. */
    private char escaped() {
        if (++at == text.length()) {
            throw error("a string does not end");
        }
        int simple = "\"\\/bfnrt".indexOf(text.charAt(at));
        if (simple >= 0) {
            return "\"\\/\b\f\n\r\t".charAt(simple);
        }
        if (text.charAt(at) != 'u' || at + 4 >= text.length()) {
            throw error("a bad escape");
        }
        int code = 0;
        for (int i = 0; i < 4; i++) {
            int digit = Character.digit(text.charAt(++at), 16);
            if (digit < 0) {
                throw error("a bad escape");
            }
            code = code << 4 | digit;
        }
        return (char) code;
    }

    private Object number() {
        int start = at;
        while (at < text.length() && "+-.eE0123456789".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
        String digits = text.substring(start, at);
        if (!digits.matches("-?(0|[1-9]\\d*)(\\.\\d+)?([eE][+-]?\\d+)?")) {
            at = start;
            throw error("no value");
        }
        if (digits.chars().anyMatch(c -> ".eE".indexOf(c) >= 0)) {
            return Double.valueOf(digits);
        }
        if (digits.length() > 18) {
            BigInteger big = new BigInteger(digits);
            return big.bitLength() < Long.SIZE ? (Object) big.longValue() : big;
        }
        long value = Long.parseLong(digits);
        return value == (int) value ? (Object) (int) value : value;
    }

    /** Writes any value: what JSON doesn't know becomes what Convert.plain makes of it. */
    static String write(Object value) {
        StringBuilder out = new StringBuilder();
        write(out, value, 0);
        return out.toString();
    }

    private static void write(StringBuilder out, Object value, int depth) {
        if (depth > MAX_DEPTH) {
            throw new IllegalArgumentException("more than " + MAX_DEPTH + " levels, or an object that contains itself");
        }
        Object plain = Convert.plain(value);
        if (plain instanceof String s) {
            quote(out, s);
        } else if (plain instanceof Map<?, ?> map) {
            String comma = "{";
            for (Map.Entry<?, ?> e : map.entrySet()) {
                out.append(comma);
                quote(out, String.valueOf(e.getKey()));
                write(out.append(':'), e.getValue(), depth + 1);
                comma = ",";
            }
            out.append(map.isEmpty() ? "{}" : "}");
        } else if (plain instanceof Iterable<?> list) {
            out.append('[');
            int start = out.length();
            for (Object element : list) {
                if (out.length() > start) {
                    out.append(',');
                }
                write(out, element, depth + 1);
            }
            out.append(']');
        } else if (plain instanceof BigDecimal d) {
            out.append(d);
        } else {
            out.append(plain); // a number, a boolean, or null
        }
    }

    private static void quote(StringBuilder out, String s) {
        out.append('"');
        for (int i = 0; i < s.length(); i++) {
            char c = s.charAt(i);
            int simple = "\"\\\b\f\n\r\t".indexOf(c);
            if (simple >= 0) {
                out.append('\\').append("\"\\bfnrt".charAt(simple));
            } else if (c < ' ' || Character.isSurrogate(c) && !paired(s, i)) {
                out.append(String.format("\\u%04x", (int) c));
            } else {
                out.append(c);
            }
        }
        out.append('"');
    }

    /** Lone surrogates can only travel escaped. */
    private static boolean paired(String s, int i) {
        return Character.isHighSurrogate(s.charAt(i))
            ? i + 1 < s.length() && Character.isLowSurrogate(s.charAt(i + 1))
            : i > 0 && Character.isHighSurrogate(s.charAt(i - 1));
    }
}
