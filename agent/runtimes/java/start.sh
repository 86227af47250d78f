#!/bin/sh
# Starts the Java bootstrap. The JVM doesn't see the sandbox's limit of memory: it is told how much of it is for objects;
# the rest is for classes, threads, compiled code and buffers. It may write to the map of the environment, since the
# function's variables come after its start.
limit=${AWS_LAMBDA_FUNCTION_MEMORY_SIZE:-128}
if [ "$limit" -le 256 ]; then heap=$((limit / 2)); else heap=$((limit * 3 / 4)); fi
exec /usr/bin/java "-Xmx${heap}m" "-Xms$((heap / 4))m" -XX:MaxMetaspaceSize="$((limit / 2))m" -XX:ReservedCodeCacheSize=32m \
	-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData -Xshare:auto -Djava.awt.headless=true -Dfile.encoding=UTF-8 \
	--add-opens java.base/java.util=ALL-UNNAMED -cp /var/runtime/classes mayfly.Bootstrap
