"""The API server as kubectl, webhooks and clients meet it, on a real cluster of this machine."""

import base64
import datetime as dt
import json
import subprocess
import textwrap
import threading
import time
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kit.clock import utcnow
from kit.kube import Kube, KubeError
from local.cluster import Cluster
from local.errors import ApiError, BadManifest
from local.objects import Object
from tests.local.pods import namespace, pod, service, sleeper
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.netns

_WEBHOOK = textwrap.dedent(
    """
    import base64, http.server, json, ssl, sys
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200); self.end_headers()
        def do_POST(self):
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]
            labels = review["object"]["metadata"].get("labels", {})
            answer = {"uid": review["uid"], "allowed": labels.get("wish") != "denied"}
            if answer["allowed"]:
                patch = [{"op": "add", "path": "/metadata/annotations", "value":
                          {"seen-by": "webhook", "asked-by": review["userInfo"]["username"]}}]
                answer["patch"] = base64.b64encode(json.dumps(patch).encode()).decode()
                answer["patchType"] = "JSONPatch"
            else:
                answer["status"] = {"message": "you did not say please"}
            body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                               "response": answer}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
    server = http.server.ThreadingHTTPServer(("", 8443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("/tls/tls.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
    """
)


def _kubectl(cluster: Cluster, *argv: str, feed: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["kubectl", "--kubeconfig", str(cluster.kubeconfig), *argv],
        input=feed,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S + 30,
        check=False,
    )


def test_kubectl_applies_shows_changes_reads_logs_and_deletes(cluster: Cluster) -> None:
    container = {"name": "app", "command": ["sh", "-c", "echo hello; exec sleep 3600"]}
    text = namespace("ctl") + pod("one", container, namespace="ctl", labels={"a": "b"})
    applied = _kubectl(cluster, "apply", "-f", "-", feed=text)
    assert applied.stdout.splitlines() == ["namespace/ctl created", "pod/one created"]
    ready = _kubectl(
        cluster, "-n", "ctl", "wait", "--for=condition=Ready", "pod/one", "--timeout=60s"
    )
    assert ready.returncode == 0, ready.stderr
    shown = _kubectl(cluster, "-n", "ctl", "get", "pods", "-l", "a=b").stdout.splitlines()
    assert shown[0].split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert shown[1].split()[:4] == ["one", "1/1", "Running", "0"]
    assert _kubectl(cluster, "-n", "ctl", "logs", "one").stdout == "hello\n"
    again = _kubectl(cluster, "apply", "-f", "-", feed=text.replace("a: b", "a: c"))
    assert "pod/one configured" in again.stdout
    assert cluster.get("Pod", "ctl/one")["metadata"]["labels"] == {"a": "c"}
    gone = _kubectl(cluster, "delete", "-f", "-", "--grace-period=0", "--force", feed=text)
    assert gone.returncode == 0, gone.stderr
    assert _kubectl(cluster, "get", "ns", "ctl").returncode == 1


def test_a_deployment_replaces_its_pods_when_its_template_changes(cluster: Cluster) -> None:
    def deployment(colour: str) -> str:
        container = sleeper(env=[{"name": "COLOUR", "value": colour}])
        pod_spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
        template = {"metadata": {"labels": {"app": "d"}}, "spec": pod_spec}
        selector = {"matchLabels": {"app": "d"}}
        spec = {"replicas": 2, "selector": selector, "template": template}
        head = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
        return yaml.safe_dump({**head, "spec": spec})

    assert _kubectl(cluster, "apply", "-f", "-", feed=deployment("red")).returncode == 0
    rollout = ("rollout", "status", "deploy/d", "--timeout=60s")
    assert _kubectl(cluster, *rollout).returncode == 0
    assert _kubectl(cluster, "apply", "-f", "-", feed=deployment("blue")).returncode == 0
    assert _kubectl(cluster, *rollout).returncode == 0
    deadline = time.monotonic() + PATIENCE_S
    while len(pods := cluster.select("Pod", "default", labelSelector="app=d")) != 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert {p["spec"]["containers"][0]["env"][0]["value"] for p in pods} == {"blue"}
    assert _kubectl(cluster, "delete", "deploy", "d").returncode == 0
    while cluster.select("Pod", "default", labelSelector="app=d"):
        assert time.monotonic() < deadline + 10
        time.sleep(0.1)


def test_a_mutating_webhook_in_a_pod_is_called_over_https_through_its_service(
    cluster: Cluster,
) -> None:
    key_and_chain, ca = _certificate("hook.hooks.svc")
    guarded = namespace("guarded").replace("{name", "{labels: {g: y}, name")
    cluster.apply(namespace("hooks") + guarded)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "tls", "namespace": "hooks"},
        "stringData": {"tls.pem": key_and_chain},
    }
    server = {
        "name": "app",
        "command": ["python", "-c", _WEBHOOK],
        "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
        "ports": [{"name": "http", "containerPort": 8443}],
        "readinessProbe": {"httpGet": {"scheme": "HTTPS", "path": "/", "port": 8443}},
    }
    volumes = [{"name": "tls", "secret": {"secretName": "tls"}}]
    labels = {"app": "hook"}
    cluster.apply(json.dumps(secret, indent=1))
    cluster.apply(
        pod("hook", server, namespace="hooks", labels=labels, volumes=volumes)
        + service("hook", "hook", namespace="hooks", ports=[{"port": 443, "targetPort": 8443}])
    )
    cluster.wait_ready("hooks/hook")
    time.sleep(0.3)
    cluster.apply(_configuration(ca))
    cluster.apply(pod("nice", namespace="guarded"))
    annotations = cluster.get("Pod", "guarded/nice")["metadata"]["annotations"]
    assert annotations == {"seen-by": "webhook", "asked-by": "kubernetes-admin"}
    with pytest.raises(BadManifest, match=r'webhook "hook.podlink.test" denied.*you did not say'):
        cluster.apply(pod("rude", namespace="guarded", labels={"wish": "denied"}))
    cluster.apply(pod("elsewhere"))
    assert "seen-by" not in cluster.get("Pod", "default/elsewhere")["metadata"]["annotations"]

    cluster.apply(_configuration(_certificate("hook.hooks.svc")[1]))  # somebody else's CA
    with pytest.raises(BadManifest, match=r'failed calling webhook "hook.podlink.test"'):
        cluster.apply(pod("unheard", namespace="guarded"))
    cluster.apply(_configuration(ca, failurePolicy="Ignore"))
    cluster.client.call("DELETE", "/api/v1/namespaces/hooks/pods/hook", gracePeriodSeconds="0")
    cluster.wait_gone("Pod", "hooks/hook")
    cluster.apply(pod("ignored", namespace="guarded"))
    cluster.delete(_configuration(ca))


def test_a_token_says_which_pod_it_is_bound_to_and_dies_with_it(cluster: Cluster) -> None:
    token = {"serviceAccountToken": {"audience": "podlink-ca", "path": "token"}}
    mounts = [{"name": "t", "mountPath": "/var/run/secrets/podlink/token"}]
    volumes = [{"name": "t", "projected": {"sources": [token]}}]
    text = pod("bound", sleeper(volumeMounts=mounts), volumes=volumes)
    cluster.apply(text)
    cluster.wait_ready("default/bound")
    path = f"{mounts[0]['mountPath']}/token"
    raw = cluster.exec("default/bound", ["cat", path]).stdout
    uid = cluster.get("Pod", "default/bound")["metadata"]["uid"]

    status = _review(cluster, raw, "podlink-ca")
    assert status["authenticated"] is True
    assert status["audiences"] == ["podlink-ca"]
    assert status["user"]["username"] == "system:serviceaccount:default:default"
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["bound"]
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [uid]
    assert _review(cluster, raw, "another")["authenticated"] is False
    assert _review(cluster, raw, "")["authenticated"] is False
    assert _review(cluster, raw[:-3] + "abc", "podlink-ca")["authenticated"] is False

    cluster.client.call("DELETE", "/api/v1/namespaces/default/pods/bound", gracePeriodSeconds="0")
    cluster.wait_gone("Pod", "default/bound")
    cluster.apply(text)  # the same name, another pod
    assert _review(cluster, raw, "podlink-ca")["authenticated"] is False


def test_a_pod_reaches_the_api_with_its_own_token_and_nobody_without_one(cluster: Cluster) -> None:
    cluster.apply(pod("caller"))
    cluster.wait_ready("default/caller")
    directory = "/var/run/secrets/kubernetes.io/serviceaccount"
    ask = (
        f"curl -sS -m 5 --cacert {directory}/ca.crt -o /dev/null -w '%{{http_code}} '"
        ' https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/api/v1/pods "$@"'
    )
    with_token = f'set -- -H "Authorization: Bearer $(cat {directory}/token)"; {ask}'
    done = cluster.exec("default/caller", ["sh", "-c", f"{ask}; {with_token}"])
    assert done.stdout.split() == ["401", "200"], done.stderr


async def test_kits_client_lists_watches_and_is_told_when_its_version_is_too_old(
    cluster: Cluster,
) -> None:
    async with await Kube.from_kubeconfig(str(cluster.kubeconfig)) as kube:
        path = "/api/v1/namespaces/default/configmaps"
        listed = await kube.get(path)
        version = listed["metadata"]["resourceVersion"]
        made = await kube.create(path, {"metadata": {"name": "seen"}, "data": {"n": "0"}})
        await kube.patch(f"{path}/seen", {"data": {"n": "1"}})
        await kube.delete(f"{path}/seen")
        heard = []
        async for event in kube.watch(path, version, timeout_s=5):
            heard.append((event["type"], event["object"]["data"]["n"]))
            if len(heard) == 3:
                break
        assert heard == [("ADDED", "0"), ("MODIFIED", "1"), ("DELETED", "1")]
        with pytest.raises(KubeError) as conflict:
            await kube.replace(f"{path}/seen", made)
        assert conflict.value.status == 404


def test_a_write_to_an_old_version_conflicts(cluster: Cluster) -> None:
    path = "/api/v1/namespaces/default/configmaps"
    first = cluster.client.call("POST", path, {"metadata": {"name": "race"}, "data": {"n": "0"}})
    cluster.client.call("PUT", f"{path}/race", {**first, "data": {"n": "1"}})
    with pytest.raises(ApiError, match="has been modified") as refused:
        cluster.client.call("PUT", f"{path}/race", {**first, "data": {"n": "2"}})
    assert refused.value.code == 409


def test_custom_resources_are_served_once_they_are_defined(cluster: Cluster) -> None:
    definition: dict[str, Any] = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "linkpolicies.podlink.dev"},
        "spec": {
            "group": "podlink.dev",
            "scope": "Namespaced",
            "names": {"plural": "linkpolicies", "kind": "LinkPolicy"},
            "versions": [{"name": "v1alpha1", "storage": True, "subresources": {"status": {}}}],
        },
    }
    policy = (
        "apiVersion: podlink.dev/v1alpha1\nkind: LinkPolicy\nmetadata: {name: db}\n"
        "spec: {mode: Audit}\n"
    )
    with pytest.raises(BadManifest, match="LinkPolicy"):
        cluster.apply(policy)
    cluster.apply(json.dumps(definition, indent=1))
    cluster.apply(policy)
    path = "/apis/podlink.dev/v1alpha1/namespaces/default/linkpolicies/db"
    patch = "application/merge-patch+json"
    cluster.client.call("PATCH", f"{path}/status", {"status": {"selectedPods": 3}}, patch)
    found = cluster.client.call("GET", path)
    assert (found["spec"], found["status"]) == ({"mode": "Audit"}, {"selectedPods": 3})


def test_logs_can_be_followed(cluster: Cluster) -> None:
    script = "for i in 1 2 3; do echo line $i; sleep 0.2; done"
    container = {"name": "app", "command": ["sh", "-c", script]}
    cluster.apply(pod("chatty", container, restartPolicy="Never"))
    heard: list[bytes] = []
    reader = threading.Thread(
        target=lambda: heard.extend(cluster.follow_logs("default/chatty")), daemon=True
    )
    time.sleep(0.2)
    reader.start()
    reader.join(PATIENCE_S)
    assert not reader.is_alive()
    assert b"".join(heard) == b"line 1\nline 2\nline 3\n"


def _review(cluster: Cluster, token: str, audience: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"token": token}
    if audience:
        spec["audiences"] = [audience]
    answer = cluster.client.call(
        "POST", "/apis/authentication.k8s.io/v1/tokenreviews", {"spec": spec}
    )
    status: dict[str, Any] = answer["status"]
    return status


def _configuration(ca: str, **more: Any) -> str:
    webhook = {
        "name": "hook.podlink.test",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 3,
        "clientConfig": {
            "caBundle": base64.b64encode(ca.encode()).decode(),
            "service": {"name": "hook", "namespace": "hooks", "path": "/mutate"},
        },
        "namespaceSelector": {"matchLabels": {"g": "y"}},
        "rules": [
            {
                "operations": ["CREATE"],
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "resources": ["pods"],
            }
        ],
        **more,
    }
    return yaml.safe_dump(
        {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "hook"},
            "webhooks": [webhook],
        }
    )


def _certificate(name: str) -> tuple[str, str]:
    """A self-signed certificate for `name`: key and certificate as PEM, and the certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(utcnow() - dt.timedelta(minutes=1))
        .not_valid_after(utcnow() + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    chain = certificate.public_bytes(pem).decode()
    return secret.decode() + chain, chain


def test_an_annotation_that_is_no_string_is_named(cluster: Cluster) -> None:
    wrong = pod("numbered").replace("labels: {}", "annotations: {example.com/ports: 80}")
    assert "example.com" in wrong
    named = r"metadata.annotations\[example.com/ports\]: must be a string, quote it"
    with pytest.raises(BadManifest, match=named):
        cluster.apply(wrong)
    with pytest.raises(BadManifest, match="spec.template." + named):
        cluster.apply(_deployment("numbered", annotations={"example.com/ports": 80}))


def test_a_pod_that_is_refused_is_an_event_of_its_owner(cluster: Cluster) -> None:
    cluster.apply(_deployment("orphan", serviceAccountName="nobody"))
    cluster.apply(_deployment("served"))  # the one that fails keeps no other waiting
    deadline = time.monotonic() + PATIENCE_S
    while not (told := _told(cluster, "ReplicaSet", "orphan-")) or told[0]["count"] < 2:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    [event] = told
    assert (event["type"], event["reason"]) == ("Warning", "FailedCreate")
    assert 'serviceaccount "nobody" not found' in event["message"]
    assert cluster.select("Pod", "default", labelSelector="app=served")
    gone = cluster.delete(_deployment("orphan", serviceAccountName="nobody"))
    assert [obj["metadata"]["name"] for obj in gone] == ["orphan"]
    cluster.delete(_deployment("served"))


@pytest.mark.parametrize(
    "argv",
    [["attach"], ["port-forward", "0:80"]],
)
def test_kubectl_is_told_what_to_use_instead(cluster: Cluster, argv: list[str]) -> None:
    name = f"talked-to-by-{argv[0]}"
    cluster.apply(pod(name))
    cluster.wait_ready(f"default/{name}")
    done = _kubectl(cluster, argv[0], name, *argv[1:])
    assert done.returncode != 0
    assert "use `podlink local exec`" in done.stderr


def test_kubectl_runs_commands_in_a_container(cluster: Cluster) -> None:
    cluster.apply(pod("runs", sleeper()))
    cluster.wait_ready("default/runs")
    script = "cat; echo to-stderr >&2; exit 7"
    done = _kubectl(cluster, "exec", "-i", "runs", "--", "sh", "-c", script, feed="héllo\n" * 9000)
    assert done.stdout == "héllo\n" * 9000
    assert "to-stderr" in done.stderr
    assert "exit code 7" in done.stderr
    assert done.returncode == 7
    silent = _kubectl(cluster, "exec", "runs", "--", "cat")  # no -i: stdin is at its end
    assert (silent.returncode, silent.stdout) == (0, "")
    wrong = _kubectl(cluster, "exec", "runs", "--", "no-such-program")
    assert wrong.returncode != 0
    assert "no-such-program" in wrong.stderr
    other = _kubectl(cluster, "exec", "runs", "-c", "no-such-container", "--", "id")
    assert other.returncode != 0
    assert "no-such-container" in other.stderr


def test_a_command_hears_that_its_caller_went_away_and_is_not_killed(cluster: Cluster) -> None:
    """As containerd does it: who reads its input ends with it, who is deaf lives on."""
    cluster.apply(pod("left", sleeper()))
    cluster.wait_ready("default/left")
    _leave_behind(cluster, "exec sleep 4567")
    _leave_behind(cluster, "exec cat -u -")
    deadline = time.monotonic() + PATIENCE_S
    while "cat\x00-u\x00-" in (commands := _node_commands(cluster)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "sleep\x004567" in commands


def _leave_behind(cluster: Cluster, command: str) -> None:
    argv = ["kubectl", "--kubeconfig", str(cluster.kubeconfig), "exec", "-i", "left", "--"]
    script = ["sh", "-c", f"echo up; {command}"]
    with subprocess.Popen([*argv, *script], stdin=-1, stdout=-1) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"up\n"
        caller.kill()


def _node_commands(cluster: Cluster) -> str:
    return cluster.node_exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).stdout


def _told(cluster: Cluster, kind: str, prefix: str) -> list[Object]:
    events = cluster.select("Event", "default")
    about = [(event, event["involvedObject"]) for event in events]
    return [e for e, of in about if of["kind"] == kind and of["name"].startswith(prefix)]


def _deployment(name: str, annotations: dict[str, Any] | None = None, **spec: Any) -> str:
    labels = {"app": name}
    template = {
        "metadata": {"labels": labels, "annotations": annotations or {}},
        "spec": {"containers": [sleeper()], **spec},
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }
    return yaml.safe_dump(body)
