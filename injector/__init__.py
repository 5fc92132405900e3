"""The injector: the mutating webhook that puts the sidecar into pods at admission.

- `annotations`: reads and checks every `config.podlink.dev/` annotation. Pure.
- `container`: the specs of the two containers and their volumes. Pure.
- `guard`: which pods would undermine their own sidecar, and are refused. Pure.
- `mutate`: pod, namespace and settings made into a JSON patch. Pure.
- `review`: AdmissionReview in, AdmissionReview out. Pure.
- `server`: HTTPS. `bundle`: keeps the caBundle of the webhook configuration.
- `config`, `app`, `__main__`: settings, wiring, start (`python -m injector`).
"""
