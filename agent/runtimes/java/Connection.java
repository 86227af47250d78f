package mayfly;

import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.SocketChannel;

/** The socket to the agent, as frames. */
final class Connection {
    private static final int HEADER = 5;
    /** Up to this many bytes go out with one call. */
    private static final int COPY_LIMIT = 64 << 10;

    record Frame(int type, byte[] body) { }

    private final SocketChannel channel;

    Connection(String path) throws IOException {
        channel = SocketChannel.open(StandardProtocolFamily.UNIX);
        channel.connect(UnixDomainSocketAddress.of(path));
    }

    void send(int type, byte[] body) throws IOException {
        boolean small = body.length <= COPY_LIMIT;
        ByteBuffer head = ByteBuffer.allocate(HEADER + (small ? body.length : 0));
        head.putInt(body.length + 1).put((byte) type);
        if (small) {
            writeAll(head.put(body).flip());
            return;
        }
        writeAll(head.flip());
        // In parts: Java copies what it writes to memory outside of the heap.
        for (int i = 0; i < body.length; i += COPY_LIMIT) {
            writeAll(ByteBuffer.wrap(body, i, Math.min(COPY_LIMIT, body.length - i)));
        }
    }

    private void writeAll(ByteBuffer buffer) throws IOException {
        while (buffer.hasRemaining()) {
            channel.write(buffer);
        }
    }

    /** Returns a whole frame, null at the end of the stream. */
    Frame receive() throws IOException {
        ByteBuffer head = ByteBuffer.allocate(HEADER);
        if (!readAll(head)) {
            return null;
        }
        byte[] body = new byte[head.flip().getInt() - 1];
        int type = head.get();
        for (int i = 0; i < body.length; i += COPY_LIMIT) {
            if (!readAll(ByteBuffer.wrap(body, i, Math.min(COPY_LIMIT, body.length - i)))) {
                return null;
            }
        }
        return new Frame(type, body);
    }

    private boolean readAll(ByteBuffer buffer) throws IOException {
        while (buffer.hasRemaining()) {
            if (channel.read(buffer) < 0) {
                return false;
            }
        }
        return true;
    }
}
