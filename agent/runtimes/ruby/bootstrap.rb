# frozen_string_literal: true

# Runs a Ruby function inside a sandbox of Mayfly.
#
# It dials the agent's socket, says Hello, requires the file that Load names, and answers one Invoke after the
# other. The frames are described in agent/frame. Gems are set up after Hello, while the sandbox waits to be claimed.

require 'socket'
require 'json'

module Mayfly
  PROTOCOL = 1
  RUNTIME = "ruby#{RUBY_VERSION[/\A\d+\.\d+/]}"
  SOCKET_PATH = '/run/mayfly/agent.sock'
  BOOTSTRAP = __FILE__

  HELLO, READY, INIT_ERROR, RESULT, ERROR = 1, 2, 3, 4, 5
  LOAD, INVOKE, SHUTDOWN = 16, 17, 18

  # Lambda's limit for an answer, in bytes.
  MAX_RESULT = 6_291_556
  # A failure with more text than this is cut: it must fit in a frame.
  MAX_ERROR_TEXT = 256 << 10
  MAX_TRACE = 100

  PRELOAD = %w[rubygems set time logger securerandom].freeze

  # A failure that has no Ruby class of its own.
  class Fault < StandardError
    attr_reader :kind

    def initialize(kind, message)
      super(message)
      @kind = kind
    end
  end

  # The socket to the agent, as frames.
  class Connection
    def initialize(path)
      @socket = UNIXSocket.new(path)
    end

    def send_frame(type, body = '')
      @socket.write([body.bytesize + 1, type].pack('NC') << body.b)
    end

    # Returns type and body; nil at the end of the stream.
    def receive
      header = @socket.read(5)
      return nil if header.nil? || header.bytesize < 5

      size, type = header.unpack('NC')
      body = size > 1 ? @socket.read(size - 1) : +''
      body.nil? || body.bytesize < size - 1 ? nil : [type, body]
    end

    # Tells whether the agent sent something that is not read yet.
    def pending?
      !IO.select([@socket], nil, nil, 0).nil?
    end
  end

  # The keyword argument context of a handler, as AWS Lambda documents it.
  class Context
    attr_reader :aws_request_id, :invoked_function_arn, :function_name, :function_version, :memory_limit_in_mb,
                :log_group_name, :log_stream_name, :deadline_ms, :client_context, :identity

    def initialize(function, call)
      @aws_request_id = call['request_id']
      @invoked_function_arn = call['arn']
      @deadline_ms = call['deadline_ms']
      @client_context = parse(call['client_context'])
      @identity = parse(call['cognito_identity'])
      @function_name = function['function_name']
      @function_version = function['function_version']
      @memory_limit_in_mb = function['memory_limit_mb']
      @log_group_name = function['log_group']
      @log_stream_name = function['log_stream']
    end

    def get_remaining_time_in_millis
      [@deadline_ms - (Time.now.to_f * 1000).to_i, 0].max
    end

    private

    def parse(text)
      text.nil? || text.empty? ? nil : JSON.parse(text)
    end
  end

  # How failures look to callers and in the log.
  module Failure
    module_function

    # The error that the caller of the function sees. phase is Init or Function, as in Lambda.
    def describe(error, phase)
      kind = error.is_a?(Fault) ? error.kind : "#{phase}<#{error.class.name}>"
      { 'errorMessage' => clip(message(error)), 'errorType' => kind, 'stackTrace' => trace(error) }
    end

    def message(error)
      text = error.message.to_s
      text.encoding == Encoding::UTF_8 && text.valid_encoding? ? text : text.dup.force_encoding(Encoding::UTF_8).scrub
    rescue StandardError
      "#{error.class} whose message cannot be made"
    end

    def clip(text)
      text.length > MAX_ERROR_TEXT ? "#{text[0, MAX_ERROR_TEXT]}…" : text
    end

    # The lines of a backtrace down to the function's own code.
    def trace(error)
      lines = error.backtrace || []
      lines.take_while { |line| !line.start_with?(BOOTSTRAP) }.first(MAX_TRACE).map { |line| line.dup.force_encoding(Encoding::UTF_8).scrub }
    end

    def report(error)
      text = +"[ERROR] #{error['errorType']}: #{error['errorMessage']}\n"
      error['stackTrace'].each { |line| text << "    from #{line}\n" }
      $stdout.write(text)
    rescue StandardError # the function may have closed or replaced it
      STDERR.write(text)
    end
  end

  # FILE.METHOD or FILE.CLASS.METHOD, where CLASS may have a namespace.
  class Handler
    def initialize(name)
      @file, *path = name.split('.')
      @method = path.pop
      @class = path.first
      return if @file && @method && path.size < 2 && !name.end_with?('.')

      raise ArgumentError, "Invalid handler #{name}, must be of form FILENAME.METHOD or FILENAME.CLASS.METHOD where " \
                           'FILENAME corresponds with an existing Ruby source file FILENAME.rb, CLASS is an optional ' \
                           'module/class namespace and METHOD is a callable method. If using CLASS, METHOD must be a class-level method.'
    end

    def load(task_root)
      require File.join(task_root, @file)
    end

    def call(event, context)
      receiver = @class ? Kernel.const_get(@class) : Kernel
      receiver.send(@method, event: event, context: context)
    end
  end

  # Loads one function and answers its invocations.
  class Runner
    def initialize(connection)
      @connection = connection
      @pid = Process.pid
    end

    def run
      @connection.send_frame(HELLO, JSON.generate('protocol' => PROTOCOL, 'runtime' => RUNTIME))
      preload
      while (frame = @connection.receive)
        type, body = frame
        case type
        when INVOKE then invoke(body)
        when LOAD then load_function(JSON.parse(body))
        when SHUTDOWN then return
        end
      end
    end

    # Loads what many functions use; rubygems comes first, since every function may need it.
    def preload
      PRELOAD.each_with_index do |name, i|
        require name
        return if i.positive? && @connection.pending?
      end
    end

    # A failure is told to the agent, and ends the process.
    def load_function(function)
      ENV.update(function['env'] || {})
      @function = function
      task_root = function['task_root']
      Dir.chdir(task_root)
      search_in(task_root)
      @handler = Handler.new(function['handler'])
      @handler.load(task_root)
      @connection.send_frame(READY)
    rescue SystemExit, SignalException
      raise
    rescue Exception => e # rubocop:disable Lint/RescueException
      fail_init(e)
    end

    def fail_init(error)
      failure = Failure.describe(error, 'Init')
      Failure.report(failure)
      @connection.send_frame(INIT_ERROR, encode(failure))
      exit!(1)
    end

    # Files are looked for in the function, its vendor folder and layers; gems where bundler and gem install them.
    def search_in(task_root)
      added = [task_root, File.join(task_root, 'vendor'), *ENV.fetch('RUBYLIB', '').split(':'), '/opt/ruby/lib']
      $LOAD_PATH.unshift(*added.select { |dir| File.directory?(dir) })
      abi = RbConfig::CONFIG['ruby_version']
      own = ["#{task_root}/vendor/bundle/ruby/#{abi}", "#{task_root}/vendor/ruby/#{abi}", "#{task_root}/vendor", "/opt/ruby/gems/#{abi}"]
      ENV['GEM_PATH'] = [ENV['GEM_PATH'], *own].compact.join(':')
      Gem.paths = ENV
    end

    def invoke(body)
      size = body.unpack1('N')
      call = JSON.parse(body.byteslice(4, size).force_encoding(Encoding::UTF_8))
      ENV['_X_AMZN_TRACE_ID'] = call['trace_id'] if call['trace_id']
      event = body.byteslice(4 + size, body.bytesize).force_encoding(Encoding::UTF_8)
      type, answer = attempt(event, call)
      leave_child
      $stdout.flush rescue nil # rubocop:disable Style/RescueModifier -- the function may have closed it
      @connection.send_frame(type, answer)
    end

    def attempt(event, call)
      [RESULT, encode_result(@handler.call(decode(event), Context.new(@function, call)))]
    rescue SystemExit, SignalException
      raise
    rescue Exception => e # rubocop:disable Lint/RescueException
      failure = Failure.describe(e, 'Function')
      Failure.report(failure)
      [ERROR, encode(failure.merge('requestId' => call['request_id']))]
    end

    # A child that the handler forked must not answer for its parent.
    def leave_child
      exit!(0) if Process.pid != @pid
    end

    def decode(raw)
      JSON.parse(raw)
    rescue JSON::ParserError => e
      raise Fault.new('Runtime.UnmarshalError', "Unable to unmarshal input: #{e.message}")
    end

    def encode(value)
      JSON.generate(value)
    end

    def encode_result(value)
      begin
        body = encode(value)
      rescue StandardError => e
        raise Fault.new('Runtime.MarshalError', "Unable to marshal response: #{Failure.message(e)}")
      end
      return body if body.bytesize <= MAX_RESULT

      raise Fault.new('Function.ResponseSizeTooLarge',
                      "Response payload size (#{body.bytesize} bytes) exceeded maximum allowed payload size (#{MAX_RESULT} bytes).")
    end
  end
end

$stdout.sync = true
$stderr.sync = true
Mayfly::Runner.new(Mayfly::Connection.new(Mayfly::SOCKET_PATH)).run
