"""Run the steps of Dockerfiles without Docker: each stage in a folder that begins as a new Debian.

What an image holds is what its own lines made of that Debian. Instead of an image there is a folder, instead of a
container a process in namespaces of its own: the image's user, no capabilities, the file system read-only but for
volumes and /tmp. The network is the machine's unless a prefix leads to another one.
"""

import os
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.support.debian import CERTIFICATES, isolated, network_settings, remove, unshared
from tests.support.dockerfile import assignments, expand, read_dockerfile, read_ignored

# Where this machine's certificates are while an image is built. They are no part of it.
MACHINE_CERTIFICATES = "/run/certificates.crt"
CACHE_FLAG = "type=cache,target="
# The arguments are the root, the certificates, the cache's folder on the machine and in the root, and a command.
BUILD = """
root=$1
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
touch "$root/run/certificates.crt"
[ -z "$2" ] || mount --bind "$2" "$root/run/certificates.crt"
[ -z "$3" ] || { mkdir -p "$root$4" && mount --bind "$3" "$root$4"; }
shift 4
exec chroot "$root" "$@"
"""
# The arguments are the root, the number of volumes, folder and path of each, user, group, and a command.
RUN = """
root=$1 volumes=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=1777,nosuid,nodev,noexec tmpfs "$root/tmp"
while [ "$volumes" -gt 0 ]; do
  mount --bind "$1" "$root$2"; shift 2; volumes=$((volumes - 1))
done
mount -o remount,bind,ro "$root"
user=$1 group=$2; shift 2
exec chroot "$root" setpriv --reuid="$user" --regid="$group" --clear-groups --no-new-privs --bounding-set=-all \
  --inh-caps=-all "$@"
"""


@dataclass
class Image:
    """A root with what its Dockerfile says of how to run it."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    prefix: list[str] = field(default_factory=list)  # of each command of this machine

    def argv(self, command, mounts, variables):
        """Return what runs a command in a container, as one of this machine."""
        volumes = {volume: self._volume(volume) for volume in self.volumes} | mounts
        places = [str(each) for target, source in volumes.items() for each in (source, target)]
        known = [f"{name}={value}" for name, value in (self.variables | variables).items()]
        env = ["env", "-i", "-C", self.folder, *known]
        return self.prefix + unshared(
            *("sh", "-euc", RUN, "sh", str(self.root), str(len(volumes)), *places, *self.user.split(":")),
            *(*env, *command),
        )

    def _volume(self, path):
        """Return a new folder for a volume, with the owner that the folder has in the image, as Docker makes it."""
        folder = self.root.with_name(f"{self.root.name}-volumes") / path.strip("/").replace("/", "-")
        if not folder.exists():
            folder.mkdir(parents=True)
            owner = (self.root / path.strip("/")).stat()
            os.chown(folder, owner.st_uid, owner.st_gid)
        return folder

    def run(self, *command, mounts=None, **variables):
        """Run a command behind the entry point, to its end, and return it completed."""
        argv = self.argv([*self.entrypoint, *command], mounts or {}, variables)
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=1200)

    def is_healthy(self, **variables):
        """Whether the image's health check passes, which sees what a container sees."""
        return subprocess.run(self.argv(self.health, {}, variables), capture_output=True, timeout=120).returncode == 0

    @contextmanager
    def running(self, log, *command, mounts=None, **variables):
        """Run the image's command, or another one, and end it with SIGTERM, as `docker stop` does."""
        argv = self.argv([*self.entrypoint, *(command or self.command)], mounts or {}, variables)
        with open(log, "wb") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=output)
        try:
            yield process
        finally:
            terminate(process)


def terminate(process):
    """Send SIGTERM to the first process of a container, and after a minute SIGKILL."""
    if process.poll() is not None:
        return
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), 15)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def build(dockerfile, context, base, folder, cache, **arguments):
    """Run the steps of a Dockerfile.

    Args:
        dockerfile: Path of the file.
        context: The folder that COPY copies from; its .dockerignore applies.
        base: Root of the Debian that FROM stands for.
        folder: A new one for the roots of the stages.
        cache: A folder for the cache mounts, which builds share.
        arguments: Of the build, as `--build-arg` sets them.
    """
    parsed = read_dockerfile(dockerfile)
    images = {}
    for number, stage in enumerate(parsed.stages):
        assert stage.base.startswith("debian:"), stage.base
        root = folder / (stage.name or f"image{number}")
        root.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        image = Image(root, {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
        given = {}
        for instruction in stage.instructions:
            _apply(instruction, image, images, context, cache, given, arguments)
        images[stage.name] = image
    *earlier, last = images
    for name in earlier:
        remove(images[name].root)
    return images[last]


def _apply(instruction, image, images, context, cache, given, arguments):
    """Carry one instruction out; `given` collects the ARGs of its stage."""
    known = given | image.variables
    match instruction.name:
        case "ARG":
            name = instruction.text.partition("=")[0]
            given[name] = arguments.get(name, assignments(instruction.text).get(name, ""))
        case "ENV":
            image.variables |= {name: expand(value, known) for name, value in assignments(instruction.text).items()}
        case "WORKDIR":
            image.folder = str(PurePosixPath(image.folder, expand(instruction.text, known)))
            (image.root / image.folder.strip("/")).mkdir(parents=True, exist_ok=True)
        case "COPY":
            _copy(instruction, image, images, context)
        case "RUN":
            _run(instruction, image, cache, known)
        case "USER":
            image.user = instruction.text
        case "VOLUME":
            image.volumes = instruction.words
        case "ENTRYPOINT":
            image.entrypoint = instruction.words
        case "CMD":
            image.command = instruction.words
        case "HEALTHCHECK":
            image.health = instruction.words
        case "EXPOSE":
            pass
        case name:
            raise ValueError(f"{name} is not carried out here")


def _copy(instruction, image, images, context):
    """Copy files as their owner root, and what a folder holds rather than the folder, as Docker does."""
    *sources, target = instruction.words
    place = image.root / str(PurePosixPath(image.folder, target)).strip("/")
    if target.endswith("/"):
        place.mkdir(parents=True, exist_ok=True)
    from_stage = instruction.flag("from")
    for source in sources:
        origin = images[from_stage].root / source.strip("/") if from_stage else context / source
        assert origin.exists(), f"COPY {source}: not found"
        place.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            _copy_folder(origin, place, None if from_stage else context)
        else:
            assert from_stage or not read_ignored(context)(source), f"COPY {source}: left out by .dockerignore"
            file = place / origin.name if place.is_dir() else place
            shutil.copy(origin, file)
            if mode := instruction.flag("chmod"):
                file.chmod(int(mode, 8))


def _copy_folder(origin, place, context):
    """Copy a folder: of a stage as it is, of a context without what its .dockerignore leaves out."""
    if context is None:
        # As links, because the stage is removed in the end and an environment takes gigabytes
        place.mkdir(exist_ok=True)
        subprocess.run(["cp", "-al", f"{origin}/.", f"{place}/"], check=True)
        return
    ignored = read_ignored(context)
    for path in sorted(origin.rglob("*")):
        if path.is_file() and not ignored(path.relative_to(context).as_posix()):
            target = place / path.relative_to(origin)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    assert place.is_dir(), f"COPY {origin}: .dockerignore leaves nothing of it"


def _run(instruction, image, cache, variables):
    """Run a step as root, with the cache that it mounts."""
    mount = instruction.flag("mount") or ""
    assert not mount or mount.startswith(CACHE_FLAG), mount
    target = mount.removeprefix(CACHE_FLAG)
    cached = str(cache) if target else ""
    certificates = f"/{CERTIFICATES}" if Path("/", CERTIFICATES).exists() else ""
    names = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE") if certificates else ()
    settings = network_settings() | dict.fromkeys(names, MACHINE_CERTIFICATES)
    settings |= {"HOME": "/root"} | variables
    env = ["env", "-i", "-C", image.folder, *(f"{name}={value}" for name, value in settings.items())]
    shell = [*env, "/bin/sh", "-c", instruction.text]
    done = isolated("sh", "-euc", BUILD, "sh", str(image.root), certificates, cached, target, *shell)
    assert done.returncode == 0, f"line {instruction.line}: {done.stdout[-1500:]}{done.stderr[-1500:]}"
    (image.root / MACHINE_CERTIFICATES.strip("/")).unlink(missing_ok=True)
    if target:
        # what Docker leaves of a cache mount
        assert not any((image.root / target.strip("/")).iterdir())
