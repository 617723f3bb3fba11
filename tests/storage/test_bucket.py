"""Objects of buckets, by servers on loopback; tests/reliability/test_bucket_runs.py trains in one."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deit_jax.storage import amazon_store, google_store, store
from deit_jax.storage import bucket as module
from deit_jax.storage.bucket import Bucket, bucket_address
from deit_jax.storage.lease import Lease
from deit_jax.storage.store import ABSENT, BucketError, ChangedError, UnreachableError
from deit_jax.storage.workdir import CONFIG, Workdir
from tests.bucket_server import forget_clients


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_places_in_a_bucket(scheme):
    run = f"{scheme}://b/runs/a"
    for place in (run, f"{run}/", f"{scheme.upper()}://b/runs/a", Path(run)):
        assert bucket_address(place) == run
    for place in ("runs/a", "/runs/a", "a:b", "a:/b", Path(scheme), "C:/runs"):
        assert bucket_address(place) is None
    workdir = Workdir.at(run)
    assert str(workdir) == run and workdir.address(CONFIG) == f"{run}/config.json"
    assert workdir.name == "a" and str(workdir.teacher) == f"{run}/teacher" and Workdir.at(workdir) is workdir
    assert str(workdir.checkpoints) == f"{run}/checkpoints"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("https://b/a", "https://b/a is an address: give a folder, or a bucket's gs://BUCKET/RUN or s3://BUCKET/RUN"),
        ("gs://b", "gs://b: a run in a bucket is gs://BUCKET/RUN, with a name for the run"),
        ("s3://b/", "s3://b/: a run in a bucket is s3://BUCKET/RUN, with a name for the run"),
        ("gs://b/a//c", "with a name for the run"),
        ("gs://b/../c", "with a name for the run"),
        ("gs://b-/run", r"^gs://b-/run: the name of a bucket starts and ends with a letter or a digit$"),
        ("s3://_b/run", "starts and ends with a letter"),
    ],
)
def test_other_addresses_are_refused_in_one_line(place, message):
    with pytest.raises(BucketError, match=message):
        Workdir.at(place)


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("s3", "boto3")])
def test_a_package_that_is_not_installed(monkeypatch, scheme, package):
    forget_clients()
    monkeypatch.setattr(store, "_is_installed", lambda name: name != package)
    with pytest.raises(BucketError, match=rf"^{scheme}:// needs the package {package}: pip install {package}$"):
        Bucket(f"{scheme}://b/a").read("x")


def test_objects_are_written_under_a_condition(bucket):
    assert bucket.read("a/b") is None and bucket.stat("a/b") is None and bucket.list() == {}
    first = bucket.write("a/b", b"one", version=ABSENT)
    other = first.version + 1 if bucket.scheme == "gs" else '"0123"'
    for version in (ABSENT, other):
        with pytest.raises(ChangedError):
            bucket.write("a/b", b"two", version=version)
    there = bucket.stat("a/b")
    assert bucket.read("a/b") == b"one" and (there.version, there.checksums) == (first.version, first.checksums)
    assert abs(there.updated - first.updated) < 3
    second = bucket.write("a/b", b"two!", version=first.version)
    assert second.version != first.version and second.updated >= first.updated and second.size == 4
    with pytest.raises(ChangedError):
        bucket.write("none", b"", version=second.version)
    bucket.write("c", b"")
    bucket.copy("a/b", "a/copy")
    assert list(bucket.list()) == ["a/b", "a/copy", "c"] and list(bucket.list("a/")) == ["a/b", "a/copy"]
    assert bucket.within("a").read("copy") == b"two!" and bucket.read("c") == b""
    if bucket.scheme == "s3":  # fake-gcs-server ignores the condition of a removal
        bucket.delete("a/b", version=first.version)
        assert bucket.list()["a/b"].version == second.version
    bucket.delete("a/b", version=second.version)
    for version in (second.version, None):
        bucket.delete("a/b", version=version)
    assert list(bucket.list("a/")) == ["a/copy"]


def test_of_several_that_create_an_object_at_once_one_succeeds(bucket):
    """moto looks and writes without a lock in between, so this shows only that the condition is sent and understood."""
    created, barrier = [], threading.Barrier(4)

    def create(number):
        barrier.wait()
        try:
            bucket.write("lock", str(number).encode(), version=ABSENT)
            created.append(number)
        except ChangedError:
            pass

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert created and int(bucket.read("lock")) in created
    assert len(created) == 1 or bucket.scheme == "s3"


@pytest.mark.parametrize("ignored", [(), (ABSENT,), ("old",), (ABSENT, "old")])
def test_a_store_that_ignores_conditions_is_refused(running, bucket, monkeypatch, ignored):
    if running.scheme == "gs":
        pytest.skip("Google's store does not")
    write = bucket._store.write

    def careless(key, content, version):
        ignores = ("old" if isinstance(version, str) else version) in ignored
        return write(key, content, None if ignores else version)

    monkeypatch.setattr(bucket._store, "write", careless)
    if ignored:
        names = " and ".join({ABSENT: "If-None-Match", "old": "If-Match"}[each] for each in ignored)
        with pytest.raises(BucketError, match=rf"^s3://runs ignores {names}, so that two runs could write here"):
            Lease(bucket, "lock").take(print)
    else:
        bucket.require_conditions("probe")
    assert bucket.list() == {}


def test_files_are_copied_with_their_checksums(bucket, tmp_path, monkeypatch):
    content = bytes(range(256)) * 20_000
    (tmp_path / "up").write_bytes(content)
    stored = bucket.upload("file", tmp_path / "up")
    there = bucket.stat("file")
    assert stored.size == there.size == len(content) and stored.checksums == there.checksums
    kind = {"gs": "md5", "s3": "sha256"}[bucket.scheme]
    assert there.checksums[kind] == store.checksum(kind, content)
    assert bucket.download("file", tmp_path / "down") and (tmp_path / "down").read_bytes() == content
    assert not bucket.download("none", tmp_path / "down")
    with pytest.raises(FileNotFoundError):  # of this machine: it is not repeated
        bucket.upload("other", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        bucket.download("file", tmp_path / "nowhere" / "down")
    if bucket.scheme == "s3":
        monkeypatch.setattr(amazon_store, "_LARGEST", len(content) - 1)
        with pytest.raises(BucketError, match=r"/large would have 5,120,000 bytes, and S3 takes 5,119,999 at most in "):
            bucket.upload("large", tmp_path / "up")


def test_s3_is_told_the_checksum_of_what_it_receives(running, bucket):
    if running.scheme == "gs":
        pytest.skip("Google's client compares checksums by itself")
    sent = []
    amazon_store.client().meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.append(request))
    bucket.write("x", b"content")
    forget_clients()
    said = sent[0].headers["x-amz-checksum-sha256"]
    assert (said if isinstance(said, str) else said.decode()) == store.checksum("sha256", b"content")


def test_s3_without_a_date_in_its_answer_to_a_write_nor_checksums(running, bucket):
    if running.scheme == "gs":
        pytest.skip("Google's answers have none")

    def without(header):
        return lambda response_dict, **_: response_dict["headers"].pop(header)

    events = amazon_store.client().meta.events
    events.register("before-parse.s3.PutObject", without("date"))
    events.register("before-parse.s3.HeadObject", without("x-amz-checksum-sha256"))
    before = bucket.write("x", b"before")
    stored = bucket.write("x", b"content")
    forget_clients()
    assert stored.checksums == {"sha256": store.checksum("sha256", b"content")} and stored.version != before.version
    assert stored.updated == bucket.stat("x").updated


def test_a_bucket_that_does_not_exist(running):
    place = f"{running.scheme}://nowhere"
    calls = [
        lambda it: it.list(),
        lambda it: it.write("x", b""),
        lambda it: Workdir.at(it.address).write(CONFIG, "{}"),
    ]
    if running.scheme == "s3":  # fake-gcs-server says of an object that it does not exist
        calls += [lambda it: it.stat("x"), lambda it: it.read("x")]
    for call in calls:
        with pytest.raises(BucketError, match=rf"^{place} does not exist: create the bucket, or use another$"):
            call(Bucket(f"{place}/run"))


def test_a_server_that_comes_back(running, bucket, monkeypatch):
    monkeypatch.setattr(module, "_PAUSES", (0.05, 0.1))
    bucket.write("x", b"kept")
    running.kill()
    timer = threading.Timer(0.5, running.start)
    timer.start()
    assert bucket.read("x") == b"kept"
    timer.join()
    with pytest.raises(ChangedError):
        bucket.write("x", b"other", version=ABSENT)


@pytest.mark.parametrize("knows_checksums", [True, False])
def test_a_write_whose_answer_is_lost_has_succeeded(bucket, monkeypatch, knows_checksums):
    monkeypatch.setattr(module, "_PAUSES", (0.01, 0.02))
    if not knows_checksums:
        monkeypatch.setattr(module, "ALGORITHMS", ())
    write, answers = bucket._store.write, iter([ConnectionResetError("reset"), None, None])

    def lossy(*arguments):
        stored = write(*arguments)
        if (lost := next(answers)) is not None:
            raise lost
        return stored

    monkeypatch.setattr(bucket._store, "write", lossy)
    stored = bucket.write("x", b"mine", version=ABSENT)
    assert stored.version == bucket.stat("x").version
    with pytest.raises(ChangedError):
        bucket.write("x", b"mine", version=ABSENT)  # the first attempt was answered


class Stub(ThreadingHTTPServer):
    """Answers every request with one status."""

    def __init__(self, status, content):
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # botocore waits a second for an answer to "Expect: 100-continue"

            def answer(self):
                self.server.asked += 1
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json" if content[:1] == b"{" else "application/xml")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)


@pytest.fixture(params=["gs", "s3"])
def answering(monkeypatch, request):
    pytest.importorskip({"gs": "gcsfs", "s3": "boto3"}[request.param])
    stubs = []

    def start(status, message, code=""):
        if request.param == "gs":
            content = json.dumps({"error": {"code": status, "message": message}}).encode()
        else:
            content = f"<Error><Code>{code or status}</Code><Message>{message}</Message></Error>".encode()
        stubs.append(stub := Stub(status, content))
        threading.Thread(target=stub.serve_forever, daemon=True).start()
        for name in ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{stub.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "any")
        forget_clients()
        {"gs": google_store, "s3": amazon_store}[request.param].client()  # takes longer than the patience below
        return stub

    start.scheme = request.param
    monkeypatch.setattr(module, "_PATIENCE", 0.5)
    monkeypatch.setattr(module, "_PAUSES", (0.05, 0.1))
    monkeypatch.setattr(Bucket, "_given_up", set())
    yield start
    for stub in stubs:
        stub.shutdown()
    forget_clients()


@pytest.mark.parametrize(
    ("status", "message", "line"),
    [
        (
            403,
            "x does not have storage.objects.create access",
            r"access is denied \(x does not have .*\); what it holds is",
        ),
        (401, "Anonymous caller", r"access is denied \(.*\)"),
        (400, "Invalid argument", r"the store refuses a request \(Invalid argument\)"),
    ],
)
def test_a_store_that_refuses_is_not_asked_for_minutes(answering, status, message, line):
    stub, place = answering(status, message), f"{answering.scheme}://some/run"
    with pytest.raises(BucketError, match=rf"^{place}: {line}") as caught:
        Bucket(place).write("x", b"content")
    assert stub.asked <= 2 and caught.value.exit_status == 2


def test_a_busy_store_is_asked_again_then_given_up(answering):
    stub, place = answering(429, "quota"), f"{answering.scheme}://some"
    with pytest.raises(
        UnreachableError, match=rf"^{place}/run does not answer \(quota\); .* rerun the command"
    ) as caught:
        Bucket(f"{place}/run").write("x", b"content")
    assert stub.asked > 3 and caught.value.exit_status == 75
    asked = stub.asked
    with pytest.raises(UnreachableError):
        Bucket(f"{place}/other").read("y")
    assert stub.asked <= asked + 2  # no pauses; a client sends a request again if its idle connection was closed


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (409, "ConditionalRequestConflict", UnreachableError),  # asked again
        (503, "SlowDown", UnreachableError),
        (400, "BadDigest", UnreachableError),
        (412, "PreconditionFailed", ChangedError),
        (404, "NoSuchKey", ChangedError),
        (404, "NoSuchBucket", BucketError),
        (400, "ExpiredToken", BucketError),
        (501, "NotImplemented", BucketError),
    ],
)
def test_answers_of_s3(answering, status, code, expected):
    if answering.scheme == "gs":
        pytest.skip("of S3 alone")
    answering(status, "some words", code)
    with pytest.raises(expected) as caught:
        Bucket("s3://some/run").write("x", b"content", version='"e"')
    assert type(caught.value) is expected


def test_answers_of_google(answering):
    if answering.scheme == "s3":
        pytest.skip("of Google alone")
    answering(400, 'Provided CRC32C "AAAAAA==" doesn\'t match calculated CRC32C "mnG7TA==".')
    with pytest.raises(UnreachableError, match=r"does not answer \(Provided CRC32C"):  # asked again
        Bucket("gs://some/run").write("x", b"content")


def test_errors_of_googles_client():
    pytest.importorskip("gcsfs")
    from google.auth.exceptions import RefreshError, TransportError
    from google.cloud.storage.exceptions import DataCorruption

    def unreachable(error, cause):
        try:
            raise error from cause
        except RefreshError as raised:
            return raised

    failure = google_store.GoogleStore("some").failure
    no_metadata = unreachable(RefreshError("no answer"), TransportError("metadata.google.internal: no answer"))
    for error in (DataCorruption(None, "Checksum mismatch"), no_metadata, RefreshError("busy", retryable=True)):
        assert failure(error)[0] is store.Failure.AGAIN
    assert failure(RefreshError("invalid_grant")) == (store.Failure.DENIED, "invalid_grant")


def test_s3_without_credentials_or_with_an_unknown_profile(monkeypatch, tmp_path):
    pytest.importorskip("boto3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    forget_clients()
    with pytest.raises(
        BucketError,
        match=r"^s3://some/run: access is denied \(Unable to locate credentials\); what it holds is intact$",
    ):
        Bucket("s3://some/run").read("x")
    monkeypatch.setenv("AWS_PROFILE", "absent")
    forget_clients()
    with pytest.raises(BucketError, match=r"^s3:// cannot be used \(.*\(absent\).*\): see aws configure$"):
        Bucket("s3://some/run").read("x")
    forget_clients()


def test_an_error_of_orbax_in_a_bucket_that_refuses_access(answering):
    if answering.scheme == "s3":
        pytest.skip("Orbax does not write there")
    from tests.storage.test_bucket_checkpoints import OrbaxError

    answering(403, "x does not have storage.objects.list access")
    with pytest.raises(BucketError, match=r"^gs://some/run/checkpoints: access is denied \(x does not have"):
        Workdir.at("gs://some/run").checkpoints.fault(OrbaxError("403"))


def test_checksums_are_in_base64():
    assert store.checksum("md5", b"a") == "DMF1ucDxtqgxw5niaXcmYQ=="
    assert store.checksum("sha256", b"").startswith("47DEQpj8")
