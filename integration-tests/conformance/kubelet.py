#!/usr/bin/env python3
"""A kubelet without an API server runs a static pod on gantryd: probes, logs, exec, port forwarding, restarts.

Called by run.sh, in namespaces of mounts and of the network of its own: kubelet.py KUBELET PROGRAMS RESULTS
"""

import base64
import io
import json
import os
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request

KUBELET, PROGRAMS, RESULTS = (os.path.abspath(path) for path in sys.argv[1:4])
V2 = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
SYSTEMD = os.path.isdir("/run/systemd/system")
# How many times longer than usual this machine may take.
PATIENCE = int(os.environ.get("PATIENCE") or 1)
NODE, POD, PORT = "node", "web-node", 10250
IMAGE = "localhost/gantry/box:1"
# A kubelet sets these for the whole machine.
TUNED = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
         "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"]

tls = ssl._create_unverified_context()
work = tempfile.mkdtemp(prefix="gantry-kubelet-")
children = {}
failed = []


def path(*parts):
    return os.path.join(work, *parts)


def write(name, content):
    os.makedirs(os.path.dirname(path(name)), exist_ok=True)
    with open(path(name), "w") as file:
        file.write(content if isinstance(content, str) else json.dumps(content))


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def start(name, *command):
    log = open(os.path.join(RESULTS, name + ".log"), "a")
    env = dict(os.environ, PATH=PROGRAMS + ":" + os.environ["PATH"])
    children[name] = subprocess.Popen(command, stdout=log, stderr=log, env=env)


def end(name, number=signal.SIGTERM):
    child = children.pop(name, None)
    if child:
        child.send_signal(number)
        child.wait(60 * PATIENCE)


def until(what, probe, seconds=60):
    """Waits until `probe` gives something true, which is the answer."""
    begun, last = time.monotonic(), None
    while time.monotonic() - begun < seconds * PATIENCE:
        try:
            answer = probe()
            if answer:
                return answer
        except (OSError, KeyError, IndexError, ValueError, StopIteration, subprocess.CalledProcessError) as error:
            last = error
        time.sleep(0.2)
    raise TimeoutError(f"{what}: not within {seconds * PATIENCE} s ({last})")


def get(where, method="GET"):
    request = urllib.request.Request(f"https://127.0.0.1:{PORT}{where}", method=method)
    with urllib.request.urlopen(request, context=tls, timeout=30 * PATIENCE) as answer:
        return answer.read().decode()


def pod():
    return next(one for one in json.loads(get("/pods"))["items"] or [] if one["metadata"]["name"] == POD)


def status(name):
    return next(one for one in pod()["status"]["containerStatuses"] if one["name"] == name)


class Channels:
    """A WebSocket whose messages begin with the number of a channel."""

    def __init__(self, where, protocol):
        plain = socket.create_connection(("127.0.0.1", PORT), timeout=30 * PATIENCE)
        self.stream = tls.wrap_socket(plain)
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [f"GET {where} HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade",
                 f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Protocol: {protocol}"]
        self.stream.sendall("\r\n".join(lines + ["", ""]).encode())
        self.rest = b""
        while b"\r\n\r\n" not in self.rest:
            self.rest += self.more()
        head, self.rest = self.rest.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ValueError(head + self.rest)

    def more(self):
        data = self.stream.recv(65536)
        if not data:
            raise EOFError
        return data

    def take(self, size):
        while len(self.rest) < size:
            self.rest += self.more()
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def send(self, channel, data):
        data = bytes([channel]) + data
        length = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        self.stream.sendall(b"\x82" + length + b"\0\0\0\0" + data)

    def receive(self):
        """The next message's channel and data; None at the end."""
        try:
            kind, length = self.take(2)
            if length == 126:
                (length,) = struct.unpack(">H", self.take(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.take(8))
            data = self.take(length)
        except (EOFError, OSError):
            return None
        return None if kind & 15 == 8 else (data[0], data[1:]) if data else (0, b"")

    def all(self):
        gathered = {}
        while message := self.receive():
            gathered[message[0]] = gathered.get(message[0], b"") + message[1]
        return gathered


def execute(*command, stdin=None, protocol="v5.channel.k8s.io", container="web"):
    """What a command says on each channel; 3 is how it ended."""
    words = "&".join("command=" + urllib.request.quote(word, safe="") for word in command)
    flags = "output=1&error=1" + ("&input=1" if stdin is not None else "")
    channels = Channels(f"/exec/default/{POD}/{container}?{words}&{flags}", protocol)
    if stdin is not None:
        channels.send(0, stdin)
        channels.send(255, bytes([0]))
    return channels.all()


def check(what):
    def wrap(function):
        try:
            function()
            print("passed", what, flush=True)
        except Exception as error:
            failed.append(what)
            print("FAILED", what, "-", type(error).__name__, error, flush=True)
    return wrap


def make_image():
    root = path("box.tar")
    with tarfile.open(root, "w") as tar:
        tar.add("/bin/busybox", "bin/busybox")
        for name in run("/bin/busybox", "--list").split():
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(link)
        passwd = b"root:x:0:0::/root:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        tar.addfile(entry, io.BytesIO(passwd))
    run(os.path.join(PROGRAMS, "gantry"), "--address", path("gantryd.sock"), "--namespace", "k8s.io", "import", root, IMAGE)


def manifest():
    def probe(**how):
        return dict(how, periodSeconds=1, failureThreshold=2, timeoutSeconds=5 * PATIENCE)
    serve = "cat /shared/note; mkdir /www; echo hello >/www/index.html; touch /healthy; exec httpd -f -p 8080 -h /www"
    box = {"image": IMAGE, "imagePullPolicy": "Never", "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}
    web = dict(
        box, name="web", command=["/bin/sh", "-c", serve],
        ports=[{"containerPort": 8080, "hostPort": 18080}],
        startupProbe=dict(probe(tcpSocket={"port": 8080}), failureThreshold=30 * PATIENCE),
        readinessProbe=probe(httpGet={"path": "/", "port": 8080}),
        livenessProbe=probe(exec={"command": ["cat", "/healthy"]}),
        lifecycle={"postStart": {"exec": {"command": ["touch", "/shared/started"]}},
                   "preStop": {"exec": {"command": ["touch", "/shared/stopping"]}}},
        resources={"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"memory": "16Mi", "cpu": "10m"}},
        securityContext={"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": False,
                         "seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["NET_RAW"]}},
    )
    first = dict(box, name="first", command=["/bin/sh", "-c", "echo from init > /shared/note"])
    side = dict(box, name="side", command=["/bin/sh", "-c", "while true; do date; sleep 1; done"])
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 2, "initContainers": [first], "containers": [web, side],
                 "securityContext": {"sysctls": [{"name": "net.ipv4.tcp_syncookies", "value": "0"}]},
                 "hostname": "web-host", "volumes": [{"name": "shared", "emptyDir": {}}]},
    }


def start_daemon():
    start("gantryd", os.path.join(PROGRAMS, "gantryd"), "--config", path("gantryd.toml"))
    until("gantryd's socket", lambda: os.path.exists(path("gantryd.sock")) and
          run(os.path.join(PROGRAMS, "gantry"), "--address", path("gantryd.sock"), "ps") is not None)


def prepare():
    run("ip", "link", "set", "lo", "up")
    for name in TUNED:
        place = "/proc/sys/" + name
        if os.path.exists(place):
            with open(place) as file:
                write("sys/" + name, file.read())
            run("mount", "--bind", path("sys", name), place)
    network = {"cniVersion": "1.0.0", "name": "kubelet", "plugins": [
        {"type": "bridge", "bridge": "pods0", "isGateway": True, "ipam": {
            "type": "host-local", "dataDir": path("ipam"), "ranges": [[{"subnet": "10.214.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": True}}]}
    write("net.d/10-kubelet.conflist", network)
    driver = "systemd" if SYSTEMD else "cgroupfs"
    write("gantryd.toml", f"""
root = "{path('root')}"
state = "{path('state')}"
[grpc]
address = "{path('gantryd.sock')}"
[cri]
cgroup_driver = "{driver}"
[cri.cni]
conf_dir = "{path('net.d')}"
bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
netns_dir = "{path('netns')}"
timeout = {60 * PATIENCE}
""")
    write_kubelet({"EventedPLEG": True})
    os.makedirs(path("manifests"))


def write_kubelet(gates):
    driver = "systemd" if SYSTEMD else "cgroupfs"
    write("kubelet.json", {
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": "unix://" + path("gantryd.sock"), "staticPodPath": path("manifests"),
        "podLogsDir": path("logs"), "cgroupDriver": driver, "failSwapOn": False, "failCgroupV1": False,
        "address": "127.0.0.1", "port": PORT, "readOnlyPort": 0, "healthzPort": 10248,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"}, "enforceNodeAllocatable": [], "makeIPTablesUtilChains": False,
        "evictionHard": {"memory.available": "1Mi"}, "imageGCHighThresholdPercent": 100,
        "fileCheckFrequency": "1s", "syncFrequency": "5s", "runtimeRequestTimeout": f"{30 * PATIENCE}s",
        "featureGates": gates,
    })


def start_kubelet():
    # Its cAdvisor asks containerd's services for what it finds in cgroups.
    start("kubelet", KUBELET, "--config", path("kubelet.json"), "--root-dir", path("kubelet"), "--cert-dir",
          path("certificates"), "--hostname-override", NODE, "--containerd", path("gantryd.sock"), "--v", "2")
    until("the kubelet is healthy", lambda: urllib.request.urlopen("http://127.0.0.1:10248/healthz").read() == b"ok")


def has_statistics():
    pods = json.loads(get("/stats/summary"))["pods"]
    one = next(one for one in pods if one["podRef"]["name"] == POD)
    used = {one["name"]: one["memory"]["workingSetBytes"] for one in one["containers"]}
    network = one["network"]
    return used["web"] > 0 and used["side"] > 0 and network["name"] == "eth0" and network["rxBytes"] > 0 and one["cpu"]


def has_metrics():
    lines = get("/metrics/cadvisor").splitlines()
    network = [line for line in lines if line.startswith("container_network_receive_bytes_total{")
               and f'pod="{POD}"' in line and 'interface="eth0"' in line]
    return network and any(line.startswith('container_memory_working_set_bytes{container="web"') for line in lines)


def checks():
    start_daemon()
    make_image()
    start_kubelet()
    write("manifests/web.json", manifest())

    @check("a static pod gets ready by its probes")
    def _():
        until("the pod is ready", lambda: all(one["ready"] for one in pod()["status"]["containerStatuses"]), 90)
        assert pod()["status"]["podIP"].startswith("10.214.0."), pod()["status"]
        assert status("web")["restartCount"] == 0, status("web")

    @check("the init container ran and its log and that of the container are there")
    def _():
        until("the log", lambda: "from init" in get(f"/containerLogs/default/{POD}/web"))
        until("two lines", lambda: len(get(f"/containerLogs/default/{POD}/side?tailLines=2").splitlines()) == 2)

    @check("exec passes streams and the exit code on, in every version of channels")
    def _():
        for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io"]:
            said = execute("sh", "-c", "echo out; echo err >&2; exit 3", protocol=protocol)
            assert said[1] == b"out\n" and said[2] == b"err\n", said
            causes = json.loads(said[3])["details"]["causes"]
            assert causes == [{"reason": "ExitCode", "message": "3"}], said
        said = execute("cat", stdin=b"through\n")
        assert said[1] == b"through\n" and json.loads(said[3])["status"] == "Success", said
        said = execute("sh", "-c", "hostname; ls /shared; cat /proc/sys/net/ipv4/tcp_syncookies")
        assert said[1] == b"web-host\nnote\nstarted\n0\n", said

    @check("a command runs without streams")
    def _():
        assert get(f"/run/default/{POD}/web?cmd=hostname", "POST") == "web-host\n"

    @check("ports are forwarded, and mapped")
    def _():
        channels = Channels(f"/portForward/default/{POD}?port=8080", "v4.channel.k8s.io")
        channels.send(0, b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while b"hello" not in answer:
            channel, data = channels.receive()
            assert channel == 0 or data == struct.pack("<H", 8080), data
            answer += data
        assert urllib.request.urlopen("http://10.214.0.1:18080/").read() == b"hello\n"

    @check("the kubelet has statistics of the pod and of its network, which it gathers itself")
    def _():
        until("numbers", has_statistics, 90)
        until("metrics", has_metrics)

    @check("a restart of gantryd disturbs nothing")
    def _():
        before = {name: status(name)["containerID"] for name in ["web", "side"]}
        end("gantryd", signal.SIGKILL)
        time.sleep(3 * PATIENCE)
        start_daemon()
        until("exec works again", lambda: execute("echo", "again").get(1) == b"again\n")
        time.sleep(8 * PATIENCE)
        assert {name: status(name)["containerID"] for name in ["web", "side"]} == before
        assert status("web")["restartCount"] == 0 and status("web")["ready"], status("web")
        assert has_statistics() and has_metrics()

    @check("a kubelet that is started anew gathers them again, and has them from gantryd if it is to ask for them")
    def _():
        for gates in [{"EventedPLEG": True}, {"EventedPLEG": True, "PodAndContainerStatsFromCRI": True}]:
            end("kubelet")
            write_kubelet(gates)
            start_kubelet()
            until("the pod is ready", lambda: all(one["ready"] for one in pod()["status"]["containerStatuses"]), 90)
            until("numbers", has_statistics, 90)
            until("metrics", has_metrics)

    @check("a container whose liveness probe fails is started again, and the former log is kept")
    def _():
        execute("rm", "/healthy")
        until("a restart", lambda: status("web")["restartCount"] == 1 and status("web")["ready"], 90)
        assert "from init" in get(f"/containerLogs/default/{POD}/web?previous=true")
        last = status("web")["lastState"]["terminated"]
        assert last["exitCode"] in (137, 143) and last["finishedAt"] > last["startedAt"], last

    @check("a command that takes too much memory does the pod no lasting harm")
    def _():
        execute("sh", "-c", "echo 1000 > /proc/self/oom_score_adj; tail /dev/zero")
        until("the pod is ready", lambda: status("web")["ready"], 90)

    @check("a changed manifest makes a new pod, and none ends it")
    def _():
        uid = pod()["metadata"]["uid"]
        changed = manifest()
        changed["spec"]["containers"].pop()
        write("manifests/web.json", changed)
        until("another pod", lambda: pod()["metadata"]["uid"] != uid and status("web")["ready"], 120)
        os.remove(path("manifests/web.json"))
        until("no pod", lambda: not json.loads(get("/pods"))["items"], 60)
        gone = lambda: not os.listdir(path("netns")) and not [
            name for name in os.listdir(path("ipam", "kubelet")) if name[0].isdigit()]
        until("nothing is left of its network", gone, 120)
        shown = lambda: [name for top, dirs, _ in os.walk("/sys/fs/cgroup") for name in dirs
                         if "kubepods" in top and len(name.removeprefix("cri-containerd-").removesuffix(".scope")) == 64]
        until("nothing is left of its cgroups", lambda: not shown(), 60)


def clean():
    if os.path.exists(path("manifests/web.json")):
        # A check failed: the kubelet takes its pod down.
        os.remove(path("manifests/web.json"))
        try:
            until("the pod is gone", lambda: not os.listdir(path("netns")), 60)
        except TimeoutError as error:
            print("clean:", error)
    for name in list(children):
        try:
            end(name)
        except subprocess.TimeoutExpired as error:
            print("clean:", error)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as line:
                if work in line.read():
                    os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
    slices = ["kubepods.slice"] if SYSTEMD else ["kubepods"]
    if SYSTEMD:
        subprocess.run(["systemctl", "stop"] + slices, capture_output=True)
    for top, _, _ in os.walk("/sys/fs/cgroup"):
        if top.count("/") > 4 or os.path.basename(top) not in slices:
            continue
        for inner, _, _ in os.walk(top, topdown=False):
            try:
                os.rmdir(inner)
            except OSError as error:
                print("clean:", error)
    for line in reversed(open("/proc/self/mounts").readlines()):
        place = line.split()[1]
        if place.startswith(work):
            subprocess.run(["umount", "--lazy", place])
    shutil.rmtree(work, ignore_errors=True)


try:
    prepare()
    checks()
except Exception as error:
    failed.append("all")
    print("FAILED", type(error).__name__, error)
finally:
    clean()
sys.exit(1 if failed else 0)
