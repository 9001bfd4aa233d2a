{{/* Labels of everything; call with (dict "context" $ "component" "operator"). */}}
{{- define "vivarium.labels" -}}
{{ include "vivarium.selector" . }}
app.kubernetes.io/version: {{ .context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .context.Release.Service }}
app.kubernetes.io/part-of: vivarium
helm.sh/chart: {{ printf "%s-%s" .context.Chart.Name .context.Chart.Version }}
{{- end }}

{{/* The labels that selectors use; they never change. */}}
{{- define "vivarium.selector" -}}
app.kubernetes.io/name: vivarium
app.kubernetes.io/instance: {{ .context.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Full reference of an image; call with (dict "context" $ "image" .Values.images.operator). */}}
{{- define "vivarium.image" -}}
{{- $registry := required "images.registry is not set: name the registry that holds the images of Vivarium, for example --set images.registry=registry.example.org" .context.Values.images.registry -}}
{{- $name := printf "%s/%s" $registry .image.repository -}}
{{- if .image.digest -}}
{{ $name }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .image.tag | default .context.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- define "vivarium.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Socket of containerd on the nodes. */}}
{{- define "vivarium.containerdSocket" -}}
{{- $known := dict "plain" "/run/containerd/containerd.sock" "k3s" "/run/k3s/containerd/containerd.sock" "rke2" "/run/k3s/containerd/containerd.sock" -}}
{{ .Values.node.containerd.socket | default (get $known .Values.node.distribution) }}
{{- end }}

{{/* Directory of drop-in files that containerd imports. */}}
{{- define "vivarium.containerdDropInDir" -}}
{{- $known := dict "plain" "/etc/containerd/conf.d" "k3s" "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d" "rke2" "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d" -}}
{{ .Values.node.containerd.dropInDir | default (get $known .Values.node.distribution) }}
{{- end }}

{{/* What a program that needs no rights of the node runs under: PodSecurity "restricted". */}}
{{- define "vivarium.restrictedContainer" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "vivarium.restrictedPod" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}
