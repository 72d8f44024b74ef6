"""A real S3 interface on loopback, for tests of object stores."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

BUCKET = "bucket"


@contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server that holds the empty bucket `BUCKET`.

    This process and those it starts reach it at `s3://bucket/...`: the environment names it for the time of the block.
    """
    import s3fs
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    # What it holds lives in this process, not in the server: an earlier one's objects are there still.
    urlopen(Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ |= settings
    # File systems are kept by fsspec, with the endpoint that they were made with.
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        s3fs.S3FileSystem().mkdir(BUCKET)
        yield endpoint
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        # Only these: Ray keeps the token that it was first given for as long as the process lives.
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        server.stop()
