{{/* The name of all objects of a release. */}}
{{- define "lewm.name" -}}
{{- if contains .Chart.Name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{- define "lewm.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lewm.labels" -}}
{{ include "lewm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "lewm.image" -}}
{{- $variant := ternary "cu130" "cpu" (gt (int .Values.gpus) 0) -}}
{{ .Values.image.repository }}:{{ default (printf "%s-%s" .Chart.AppVersion $variant) .Values.image.tag }}
{{- end }}

{{/* Mistakes that the schema of the values cannot find. */}}
{{- define "lewm.check" -}}
{{- if and (not .Values.keys.secret) (not .Values.tls.clientCA) (not .Values.insecure) -}}
{{- fail "keys.secret: set it, or tls.clientCA, or insecure=true to serve everyone who can reach the ports" -}}
{{- end -}}
{{- if and .Values.tls.clientCA (not .Values.tls.secret) -}}
{{- fail "tls.clientCA: certificates of clients need tls.secret, the certificate of the server" -}}
{{- end -}}
{{- if and .Values.models.paths (not .Values.models.volume) -}}
{{- fail "models.volume: models.paths need a volume, which is mounted at /models" -}}
{{- end -}}
{{- if and .Values.redis.url .Values.redis.secret -}}
{{- fail "redis.secret: give the address in redis.url or in redis.secret, not in both" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.keys.secret (not .Values.serviceMonitor.keySecret) -}}
{{- fail "serviceMonitor.keySecret: with keys, Prometheus needs a key of the role read" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas: it is larger than autoscaling.maxReplicas" -}}
{{- end -}}
{{- end }}
