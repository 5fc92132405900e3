{{/* What several templates share. Names are fixed: certificates and sidecars carry them. */}}

{{- define "podlink.labels" -}}
app.kubernetes.io/name: podlink-{{ .part }}
{{ include "podlink.commonLabels" .root }}
app.kubernetes.io/component: {{ .part }}
{{- end }}

{{- define "podlink.commonLabels" -}}
{{- if eq .Values.onlyNamespace .Release.Namespace }}{{ fail "onlyNamespace must be another namespace than podlink's own" }}{{ end -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: podlink
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "podlink.selector" -}}
app.kubernetes.io/name: podlink-{{ .part }}
app.kubernetes.io/part-of: podlink
{{- end }}

{{- define "podlink.image" -}}
{{- $image := .Values.image -}}
{{- if $image.registry }}{{ $image.registry }}/{{ end }}{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "podlink.address" -}}
podlink-{{ .part }}.{{ .root.Release.Namespace }}.svc:{{ .port }}
{{- end }}

{{- define "podlink.otlp" -}}
{{- if not .Values.otlp.enabled -}}
{{- else if .Values.otlp.endpoint -}}{{ .Values.otlp.endpoint }}
{{- else if .Values.traces.enabled -}}{{ include "podlink.address" (dict "root" . "part" "traces" "port" 4317) }}
{{- end }}
{{- end }}

{{- define "podlink.guarded" -}}
{{- $wish := toString .Values.guard.enabled -}}
{{- if eq $wish "true" }}yes
{{- else if and (eq $wish "auto") (.Capabilities.APIVersions.Has "admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy") }}yes
{{- end }}
{{- end }}

{{/* What the injector is told of the mesh and puts into every sidecar: its Deployment and the guard have
it from here, so that the one lets in what the other makes. */}}
{{- define "podlink.told" -}}
{{- $told := dict "PODLINK_TRUST_DOMAIN" .Values.trustDomain
"PODLINK_CA_ADDRESS" (include "podlink.address" (dict "root" . "part" "ca" "port" 24110))
"PODLINK_REGISTRY_ADDRESS" (include "podlink.address" (dict "root" . "part" "registry" "port" 24111))
"PODLINK_OTLP_ENDPOINT" (include "podlink.otlp" .)
"PODLINK_CLUSTER_CIDRS" (join "," .Values.clusterCidrs)
"PODLINK_EXEMPT_BY" "uid" -}}
{{- range $name, $value := .Values.otlp.env }}{{ $_ := set $told $name (toString $value) }}{{ end -}}
{{- with .Values.otlp.secret.name -}}
{{- $_ := set $told "PODLINK_OTLP_SECRET" . -}}
{{- $_ := set $told "PODLINK_OTLP_SECRET_KEYS" (join "," $.Values.otlp.secret.keys) -}}
{{- end -}}
{{- toJson $told -}}
{{- end }}

{{- define "podlink.guardTold" -}}
{{- $told := include "podlink.told" . | fromJson -}}
{{- range .Values.injector.extraEnv -}}
{{- if or (hasKey $told .name) (hasPrefix "OTEL_" .name) (hasPrefix "PODLINK_" .name) -}}
{{- if .valueFrom }}{{ fail (printf "injector.extraEnv: %s must be a plain value, or the guard cannot know it" .name) }}{{ end -}}
{{- $_ := set $told .name (toString .value) -}}
{{- end -}}
{{- end -}}
{{- toJson $told -}}
{{- end }}

{{/* Of annotations, as the injector is told: all values are texts. */}}
{{- define "podlink.guardDefaults" -}}
{{- $defaults := dict -}}
{{- range $name, $value := .Values.proxyDefaults }}{{ $_ := set $defaults $name (toString $value) }}{{ end -}}
{{- toJson $defaults -}}
{{- end }}

{{- define "podlink.failurePolicy" -}}
{{- if ne .Values.injector.failurePolicy "auto" }}{{ .Values.injector.failurePolicy }}
{{- else if include "podlink.guarded" . }}Ignore
{{- else }}Fail
{{- end }}
{{- end }}

{{/* Namespaces that admission leaves alone. */}}
{{- define "podlink.excluded" -}}
{{ toJson (uniq (concat (list .Release.Namespace) .Values.guard.excludeNamespaces)) }}
{{- end }}

{{- define "podlink.podMeta" -}}
labels:
  {{- include "podlink.selector" . | nindent 2 }}
  app.kubernetes.io/instance: {{ .root.Release.Name }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  {{- with .root.Values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with .root.Values.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where a program's pods go: apart from each other, over nodes and zones. */}}
{{- define "podlink.scheduling" -}}
{{- $values := .root.Values -}}
{{- with $values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $values.priorityClass.name }}
priorityClassName: {{ $values.priorityClass.name }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $values.affinity }}
affinity: {{- toYaml $values.affinity | nindent 2 }}
{{- else if $values.requireAntiAffinity }}
affinity:
  podAntiAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "podlink.selector" . | nindent 12 }}
{{- else }}
affinity:
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{- include "podlink.selector" . | nindent 14 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "podlink.selector" . | nindent 8 }}
{{- end }}

{{- define "podlink.podSecurity" -}}
runAsUser: 65532
runAsGroup: 65532
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "podlink.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The token that the CA knows a program by, and the roots to know the CA by. */}}
{{- define "podlink.trustMounts" -}}
- {name: podlink-token, mountPath: /var/run/secrets/podlink/token, readOnly: true}
- {name: podlink-bundle, mountPath: /var/run/secrets/podlink/bundle, readOnly: true}
{{- end }}

{{- define "podlink.trustVolumes" -}}
- name: podlink-token
  projected:
    sources:
      - serviceAccountToken: {audience: podlink-ca, expirationSeconds: 3600, path: token}
- name: podlink-bundle
  configMap:
    name: podlink-bundle
    items: [{key: root.pem, path: root.pem}]
{{- end }}

{{- define "podlink.trustEnv" -}}
- {name: PODLINK_TRUST_DOMAIN, value: {{ .Values.trustDomain | quote }}}
- {name: PODLINK_SYSTEM_NAMESPACE, value: {{ .Release.Namespace }}}
{{- with .Values.onlyNamespace }}
- {name: PODLINK_ONLY_NAMESPACE, value: {{ . }}}
{{- end }}
{{- end }}

{{- define "podlink.caEnv" -}}
- {name: PODLINK_CA_ADDRESS, value: {{ include "podlink.address" (dict "root" . "part" "ca" "port" 24110) | quote }}}
- {name: PODLINK_TOKEN_PATH, value: /var/run/secrets/podlink/token/token}
- {name: PODLINK_BUNDLE_PATH, value: /var/run/secrets/podlink/bundle/root.pem}
{{- end }}

{{- define "podlink.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: podlink-{{ .part }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "podlink.labels" . | nindent 4 }}
{{- end }}

{{- define "podlink.disruption" -}}
{{- $program := index .root.Values .part -}}
{{- if and .root.Values.podDisruptionBudget.enabled (or $program.autoscaling.enabled (gt (int $program.replicas) 1)) }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: podlink-{{ .part }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "podlink.labels" . | nindent 4 }}
spec:
  minAvailable: {{ .root.Values.podDisruptionBudget.minAvailable }}
  selector:
    matchLabels: {{- include "podlink.selector" . | nindent 6 }}
{{- end }}
{{- if $program.autoscaling.enabled }}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: podlink-{{ .part }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "podlink.labels" . | nindent 4 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: podlink-{{ .part }}}
  minReplicas: {{ $program.autoscaling.minReplicas }}
  maxReplicas: {{ $program.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target:
          type: Utilization
          averageUtilization: {{ $program.autoscaling.targetCPUUtilizationPercentage }}
{{- end }}
{{- end }}

{{/* Roles: the same rules in every namespace, or in the one that is served. */}}
{{- define "podlink.boundRole" -}}
{{- $one := .root.Values.onlyNamespace -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $one | empty | ternary "ClusterRole" "Role" }}
metadata:
  name: podlink-{{ .part }}
  {{- with $one }}
  namespace: {{ . }}
  {{- end }}
  labels: {{- include "podlink.labels" . | nindent 4 }}
rules: {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $one | empty | ternary "ClusterRoleBinding" "RoleBinding" }}
metadata:
  name: podlink-{{ .part }}
  {{- with $one }}
  namespace: {{ . }}
  {{- end }}
  labels: {{- include "podlink.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: {{ $one | empty | ternary "ClusterRole" "Role" }}, name: podlink-{{ .part }}}
subjects:
  - {kind: ServiceAccount, name: podlink-{{ .part }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}

{{- define "podlink.clusterRole" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ .name }}
  labels: {{- include "podlink.labels" . | nindent 4 }}
rules: {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ .name }}
  labels: {{- include "podlink.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ .name }}}
subjects:
  - {kind: ServiceAccount, name: podlink-{{ .part }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}

{{/* The rule that lets a program see the namespaces that it serves. */}}
{{- define "podlink.namespacesRule" -}}
{{- with .Values.onlyNamespace -}}
- {apiGroups: [""], resources: [namespaces], resourceNames: [{{ . }}], verbs: [get, list, watch]}
{{- else -}}
- {apiGroups: [""], resources: [namespaces], verbs: [get, list, watch]}
{{- end }}
{{- end }}

{{/* The objects of `helm test`. */}}
{{- define "podlink.testHook" }}
  labels: {{- include "podlink.labels" (dict "root" .root "part" "test") | nindent 4 }}
  annotations:
    helm.sh/hook: test
    helm.sh/hook-weight: {{ .weight | quote }}
    helm.sh/hook-delete-policy: {{ .delete | default "before-hook-creation,hook-succeeded" }}
{{- end }}
{{- define "podlink.testContainer" }}
image: {{ include "podlink.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {memory: 64Mi}}
securityContext: {{- include "podlink.containerSecurity" . | nindent 2 }}
{{- end }}
