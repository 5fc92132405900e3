"""What kubectl asks before anything else: which groups, kinds and verbs there are. Pure."""

from local.apiserver.resources import Registry, Resource
from local.objects import Object

VERSION: Object = {
    "major": "1",
    "minor": "32",
    "gitVersion": "v1.32.0+podlink-local",
    "gitCommit": "0" * 40,
    "gitTreeState": "clean",
    "platform": "linux/amd64",
    "goVersion": "none",
    "compiler": "none",
    "buildDate": "2026-01-01T00:00:00Z",
}
_VERBS = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]


def answer(path: str, registry: Registry) -> Object | None:
    """The document at a discovery path, or None if it is not one."""
    match path.strip("/").split("/"):
        case ["version"]:
            return VERSION
        case ["api"]:
            return {"kind": "APIVersions", "versions": ["v1"]}
        case ["apis"]:
            return _groups(registry)
        case ["api", "v1"]:
            return _resources("v1", [r for r in registry.all() if not r.group])
        case ["apis", group]:
            groups = [g for g in _groups(registry)["groups"] if g["name"] == group]
            return {"kind": "APIGroup", "apiVersion": "v1", **groups[0]} if groups else None
        case ["apis", group, version]:
            found = [r for r in registry.all() if (r.group, r.version) == (group, version)]
            return _resources(f"{group}/{version}", found) if found else None
        case ["openapi", "v3"]:
            return {"paths": {_openapi_path(v): _link(v) for v in _versions(registry)}}
        case ["openapi", "v3", *rest]:
            found = [r for r in registry.all() if _openapi_path(r.api_version) == "/".join(rest)]
            return _openapi(found) if found else None
    return None


def _versions(registry: Registry) -> list[str]:
    return sorted({r.api_version for r in registry.all()})


def _groups(registry: Registry) -> Object:
    groups: dict[str, list[str]] = {}
    for resource in registry.all():
        versions = groups.setdefault(resource.group, [])
        if resource.version not in versions:
            versions.append(resource.version)
    listed = []
    for group, versions in groups.items():
        if group:
            named = [{"groupVersion": f"{group}/{v}", "version": v} for v in versions]
            listed.append({"name": group, "versions": named, "preferredVersion": named[0]})
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}


def _resources(api_version: str, found: list[Resource]) -> Object:
    listed: list[Object] = []
    for resource in found:
        entry: Object = {
            "name": resource.plural,
            "singularName": resource.kind.lower(),
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": _VERBS if resource.stored else ["create"],
        }
        if resource.short:
            entry["shortNames"] = list(resource.short)
        if resource.in_all:
            entry["categories"] = ["all"]
        listed.append(entry)
        for sub in resource.subresources:
            name = f"{resource.plural}/{sub}"
            verbs = ["create", "get"] if sub == "exec" else ["get", "patch", "update"]
            listed.append(
                {
                    "name": name,
                    "singularName": "",
                    "namespaced": resource.namespaced,
                    "kind": resource.kind,
                    "verbs": verbs,
                }
            )
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": api_version,
        "resources": listed,
    }


def _openapi_path(api_version: str) -> str:
    return f"apis/{api_version}" if "/" in api_version else f"api/{api_version}"


def _link(api_version: str) -> Object:
    return {"serverRelativeURL": f"/openapi/v3/{_openapi_path(api_version)}?hash=1"}


def _openapi(found: list[Resource]) -> Object:
    """Just enough for kubectl to see that the server validates fields itself."""
    parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
    paths: Object = {}
    schemas: Object = {}
    for resource in found:
        kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        operation = {
            "parameters": [parameter],
            "x-kubernetes-group-version-kind": kind,
            "responses": {"200": {"description": "OK"}},
        }
        root = f"/{_openapi_path(resource.api_version)}"
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        paths[f"{root}{scope}/{resource.plural}/{{name}}"] = {"patch": operation}
        paths[f"{root}{scope}/{resource.plural}"] = {"post": operation}
    info = {"title": "podlink local", "version": VERSION["gitVersion"]}
    components = {"schemas": schemas}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": components}
