"""Create what the services of compose.yaml need once; a second run changes nothing.

`prepare.py bucket` creates the bucket of `ARTIFACTS` in the object store, `prepare.py trainer` the user as whom the
training service logs its runs.
"""

import os
import sys
from urllib.parse import urlparse


def create_bucket() -> None:
    """Create the bucket that an address such as s3://bucket/path names, unless it is there."""
    import boto3

    client = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    bucket = urlparse(os.environ["ARTIFACTS"]).netloc
    if bucket not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)


def create_trainer() -> None:
    """Create the user `trainer` on the tracking server as its administrator, unless it is there."""
    from mlflow.exceptions import RestException
    from mlflow.server.auth.client import AuthServiceClient

    client = AuthServiceClient(os.environ["MLFLOW_TRACKING_URI"])
    try:
        client.get_user("trainer")
    except RestException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        client.create_user("trainer", os.environ["TRAINER_PASSWORD"])


if __name__ == "__main__":
    {"bucket": create_bucket, "trainer": create_trainer}[sys.argv[1]]()
