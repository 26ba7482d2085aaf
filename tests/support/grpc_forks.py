"""A gRPC server that forks a process for each request, as the head of a Ray cluster does for each client of ray://.

Run as a program with a number of requests, it prints the exit codes of the processes.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

METHOD = "/forks/fork"


def fork(requests, context):
    for _ in requests:
        # with such a function Python forks, instead of letting the parent wait for the new program (vfork)
        code = subprocess.Popen(["true"], preexec_fn=lambda: time.sleep(0.02)).wait()
        yield str(code).encode()


def request(port, number):
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.stream_stream(METHOD)
        # each stream is closed after three, so that gRPC is now busy, now idle
        for _ in range(number // 3):
            sys.stdout.writelines(f"{code.decode()}\n" for code in call(iter([b""] * 3)))


def main(number):
    server = grpc.server(ThreadPoolExecutor(4))
    service, method = METHOD.strip("/").split("/")
    handlers = {method: grpc.stream_stream_rpc_method_handler(fork)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    subprocess.run([sys.executable, __file__, str(number), str(port)], check=True)
    server.stop(None)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        request(sys.argv[2], int(sys.argv[1]))
    else:
        main(int(sys.argv[1]))
