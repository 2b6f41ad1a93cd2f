"""The manifests have the form that Kubernetes and Ray Serve ask for, and belong together."""

import re

import kubernetes_validate
import pytest
import yaml

from ev_platform.serving.build import Arguments
from ev_platform_tests.deploy.services import DEPLOY, ours

KUBERNETES = DEPLOY / "kubernetes"
OURS = "ev-platform"


def read(folder):
    files = sorted(file for file in (DEPLOY / folder).glob("*.yaml") if file.name != "kustomization.yaml")
    return {
        f"{file.name}:{each['kind']}/{each['metadata']['name']}": each
        for file in files
        for each in yaml.safe_load_all(file.read_text())
    }


MANIFESTS = read("kubernetes")
(RAYSERVICE,) = read("kuberay").values()
CLUSTER = RAYSERVICE["spec"]["rayClusterConfig"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]


def of_kind(*kinds):
    return [each for each in MANIFESTS.values() if each["kind"] in kinds]


def templates():
    """Return the template of every pod, by whose it is."""
    found = {each["metadata"]["name"]: each["spec"]["template"] for each in of_kind("Deployment", "StatefulSet")}
    found |= {each["metadata"]["name"]: each["spec"]["jobTemplate"]["spec"]["template"] for each in of_kind("CronJob")}
    return found | {group.get("groupName", "head"): group["template"] for group in GROUPS}


def containers(template):
    return template["spec"].get("initContainers", []) + template["spec"]["containers"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_has_the_form_that_kubernetes_asks_for(name):
    kubernetes_validate.validate(MANIFESTS[name], "1.33", strict=True)


def test_field_that_there_is_not_is_found():
    wrong = of_kind("CronJob")[0] | {"spec": {"schedules": "0 4 * * 1"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)


@pytest.mark.parametrize("group", GROUPS, ids=["head", "worker"])
def test_pods_of_the_ray_cluster_have_the_form_that_kubernetes_asks_for(group):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"} | group["template"]["metadata"]}
    kubernetes_validate.validate(pod | {"spec": group["template"]["spec"]}, "1.33", strict=True)


def test_every_file_is_in_the_kustomization_but_the_secrets():
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())
    assert set(listed["resources"]) == {name.partition(":")[0] for name in MANIFESTS} - {"secret.example.yaml"}
    assert [image["name"] for image in listed["images"]] == [OURS]


@pytest.mark.parametrize("name", templates())
def test_pod_has_no_rights_and_bounds(name):
    template = templates()[name]
    rights = template["spec"]["securityContext"]
    assert rights["runAsNonRoot"] is True
    assert rights["seccompProfile"] == {"type": "RuntimeDefault"}
    assert template["spec"]["automountServiceAccountToken"] is (name == "head")
    for container in containers(template):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} == set(container["resources"]["limits"]) == set(container["resources"]["requests"])


@pytest.mark.parametrize("name", [each["metadata"]["name"] for each in of_kind("Deployment", "StatefulSet")])
def test_service_is_probed(name):
    (container,) = templates()[name]["spec"]["containers"]
    assert "livenessProbe" in container
    assert {"readinessProbe", "startupProbe"} & set(container)


def test_commands_are_those_of_compose():
    run = {
        template["metadata"]["labels"]["app.kubernetes.io/name"]: template
        for template in list(templates().values())[:-2]
    }
    for name, service in ours().items():
        if name not in ("prepare", "serve"):  # an init container, and the Ray cluster
            assert run[name]["spec"]["containers"][0]["command"] == service["command"]


def test_what_is_named_is_there():
    named = {(each["kind"], each["metadata"]["name"]) for each in MANIFESTS.values()}
    for template in templates().values():
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])} | {"data": {}}
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert ("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]) in named
        for container in containers(template):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            for source in container.get("envFrom", []):
                ((kind, reference),) = source.items()
                assert ({"configMapRef": "ConfigMap", "secretRef": "Secret"}[kind], reference["name"]) in named
    selected = [each["spec"]["selector"] for each in of_kind("Service")]
    labels = [template["metadata"]["labels"] for template in templates().values()]
    assert all(any(selector.items() <= label.items() for label in labels) for selector in selected)


def test_policies_close_all_and_open_only_for_pods_that_there_are():
    first, *others = of_kind("NetworkPolicy")
    assert first["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    names = {template["metadata"]["labels"]["app.kubernetes.io/name"] for template in templates().values()}
    said = re.findall(r"app.kubernetes.io/name': '([\w-]+)'", str(others))
    said += [
        value
        for values in re.findall(r"'values': \[([^\]]*)\]", str(others))
        for value in re.findall(r"[\w-]+", values)
    ]
    assert set(said) <= names | {"kuberay-operator"}


def test_serve_configuration_is_one_that_ray_takes_with_arguments_that_the_builder_takes():
    from ray.serve.schema import ServeDeploySchema

    config = ServeDeploySchema.model_validate(yaml.safe_load(RAYSERVICE["spec"]["serveConfigV2"]))
    (application,) = config.applications
    arguments = Arguments.model_validate(application.args)
    assert [deployment.name for deployment in application.deployments] == list(arguments.models)


def test_ray_cluster_is_of_the_version_that_is_installed_and_hides_what_the_front_hides():
    import ray

    assert CLUSTER["rayVersion"] == ray.__version__
    assert RAYSERVICE["spec"]["excludeHeadPodFromServeSvc"] is True
    (worker,) = CLUSTER["workerGroupSpecs"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz"
    settings = MANIFESTS["config.yaml:ConfigMap/ev-platform"]["data"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert given["EV_SERVING_DATA"] == settings["EV_DATA_DIR"]
