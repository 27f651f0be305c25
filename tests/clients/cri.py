"""A containerd whose CRI plugin runs pods, and a client that asks of it what a kubelet asks.

1. containerd is as in `runtimes`, but for its configuration: CRI on, one network, the lab's
   image for pause. It serves 1.6 and 1.7 (configuration version 2, CRI v1).
2. The client speaks gRPC on containerd's socket, with messages of `cri_messages`.
3. A pod is asked for as kubelet does it: RunPodSandbox, CreateContainer, StartContainer; then
   StopPodSandbox and RemovePodSandbox, which take the containers along.
4. containerd mounts each pod's namespace at /run/netns, whatever it is told, and libcni keeps
   results in /var/lib/cni: nodes of one machine share both, and `kept` lists them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc

from tests.clients.cri_messages import METHODS, decode, encode
from tests.clients.image import IMAGE
from tests.clients.runtimes import Containerd
from tests.e2e.cluster import NETWORK, PLUGIN, Cluster
from tests.e2e.machine import until

ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
LOOPBACK = Path("/usr/lib/cni/loopback")
PATIENCE = 120.0
"""Seconds for one call: an emulated machine starts a pod in ten."""

_CRI = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = "{folder}/sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{image}"
disable_tcp_service = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{folder}/bin"
conf_dir = "{folder}/net.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


class Refused(AssertionError):
    """containerd answered with an error; the message is its own."""


class Pods(Containerd):
    """One node's containerd, as its kubelet sees it."""

    kind = "cri"
    namespace = "k8s.io"

    def __init__(self, cluster: Cluster, node: str, **fields: Any) -> None:
        """`fields` go into our plugin's part of the network configuration."""
        super().__init__(cluster, node)
        self._fields = fields

    def open(self) -> None:
        """Start containerd and wait until it says that it can run pods."""
        plugins = self.folder / "bin"
        plugins.mkdir()
        for plugin in (LOOPBACK, Path(PLUGIN)):
            (plugins / plugin.name).symlink_to(plugin)
        self.conflist()
        super().open()
        self._channel = grpc.insecure_channel(f"unix:{self.folder}/sock")
        until(self.ready, "containerd to be ready for pods")

    def configuration(self) -> str:
        """Return containerd's configuration."""
        return _CRI.format(folder=self.folder, image=IMAGE)

    def conflist(self) -> None:
        """Write the one network configuration, which serves all pods of the node."""
        plugin = {
            "type": "noctule", "key": {"file": str(self.cluster.base / "mesh.key")},
            "socket": str(self.cluster.socket(self.node)), **self._fields,
        }  # fmt: skip
        folder = self.folder / "net.d"
        folder.mkdir()
        content = {"cniVersion": "1.0.0", "name": NETWORK, "plugins": [plugin]}
        (folder / "10-mesh.conflist").write_text(json.dumps(content))

    def ask(self, method: str, **fields: Any) -> dict[str, Any]:
        """Call one method; Refused with containerd's own words."""
        asked, answered = METHODS[method]
        call = self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
        try:
            answer = call(encode(asked, fields), timeout=PATIENCE)
        except grpc.RpcError as error:
            raise Refused(f"{method}: {error.details()}") from None
        return decode(answered, answer)

    def ready(self) -> bool:
        """Say whether runtime and network are ready, as kubelet asks every few seconds."""
        conditions = self.ask("Status")["status"]["conditions"]
        return all(condition.get("status") for condition in conditions)

    def pod(self, name: str, **config: Any) -> dict[str, Any]:
        """Return the configuration of a pod, with which everything else is asked."""
        metadata = {"name": name, "uid": f"uid-{name}", "namespace": "lab", "attempt": 0}
        return {"metadata": metadata, "hostname": name, "linux": {}, **config}

    def start(self, pod: dict[str, Any], *command: str) -> tuple[str, str]:
        """Run a pod of one container; return the ids of both."""
        sandbox = self.ask("RunPodSandbox", config=pod)["pod_sandbox_id"]
        container = {"metadata": {"name": "main"}, "image": {"image": IMAGE}, "command": command}
        made = self.ask(
            "CreateContainer", pod_sandbox_id=sandbox, config=container, sandbox_config=pod
        )["container_id"]
        self.ask("StartContainer", container_id=made)
        return sandbox, made

    def address(self, sandbox: str) -> str:
        """Return the address that the pod's status shows."""
        status = self.ask("PodSandboxStatus", pod_sandbox_id=sandbox)["status"]
        return str(status["network"]["ip"])

    def within(self, container: str, *command: str) -> str:
        """Run a command in a container; return what it printed. Refused if it fails."""
        done = self.ask("ExecSync", container_id=container, cmd=command, timeout=60)
        printed = (done.get("stdout", b"") + done.get("stderr", b"")).decode()
        if done.get("exit_code", 0):
            raise Refused(f"{' '.join(command)}: {done['exit_code']}\n{printed}")
        return printed

    def stop(self, *sandboxes: str) -> None:
        """Stop and remove pods, as kubelet does, which repeats what it is not sure of."""
        for sandbox in sandboxes:
            self.ask("StopPodSandbox", pod_sandbox_id=sandbox)
            self.ask("StopPodSandbox", pod_sandbox_id=sandbox)
            self.ask("RemovePodSandbox", pod_sandbox_id=sandbox)

    def kept(self) -> list[str]:
        """Return a line for each pod, and for each result that libcni has cached."""
        pods = [f"pod {one['id']}" for one in self.ask("ListPodSandbox")["items"]]
        return pods + [f"cached {path.name}" for path in Path("/var/lib/cni/results").glob("*")]

    def close(self) -> None:
        """Remove everything."""
        try:
            self.stop(*(one["id"] for one in self.ask("ListPodSandbox")["items"]))
            self._channel.close()
        finally:
            super().close()
