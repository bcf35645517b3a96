{{- define "loadtest-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 52 characters, to leave room for the suffixes of Roles and of the token Secret. */}}
{{- define "loadtest-operator.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{/* Name for objects outside the release's namespace. Contains the release's namespace, because two
     namespaces may contain releases with the same name. */}}
{{- define "loadtest-operator.uniqueName" -}}
{{- printf "%s:%s" .Release.Namespace (include "loadtest-operator.fullname" .) }}
{{- end }}

{{- define "loadtest-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "loadtest-operator.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | trunc 63 | trimSuffix "-" | quote }}
{{- end }}

{{- define "loadtest-operator.labels" -}}
{{ include "loadtest-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "loadtest-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "loadtest-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "loadtest-operator.tokenSecret" -}}
{{- default (printf "%s-token" (include "loadtest-operator.fullname" .)) .Values.tokenSecret.name }}
{{- end }}

{{/* Image reference. Takes (dict "registry" … "repository" … "tag" …). */}}
{{- define "loadtest-operator.reference" -}}
{{- if .registry }}{{ trimSuffix "/" .registry }}/{{ end }}{{ .repository }}:{{ .tag }}
{{- end }}

{{- define "loadtest-operator.image" -}}
{{- $image := .Values.image }}
{{- include "loadtest-operator.reference" (dict
      "registry" $image.registry
      "repository" $image.repository
      "tag" (default .Chart.AppVersion $image.tag)) }}
{{- end }}

{{/* The default tag is that of the operator's image, without its digest: a digest identifies one image. */}}
{{- define "loadtest-operator.runnerImage" -}}
{{- $image := .Values.runner.image }}
{{- $tag := regexReplaceAll "@.*$" (default "" .Values.image.tag) "" }}
{{- include "loadtest-operator.reference" (dict
      "registry" (default .Values.image.registry $image.registry)
      "repository" $image.repository
      "tag" (coalesce $image.tag $tag .Chart.AppVersion)) }}
{{- end }}

{{/* Exactly the rights that the operator uses in watched namespaces. */}}
{{- define "loadtest-operator.watchRules" -}}
- apiGroups: [loadtest.cell0.io]
  resources: [loadtests]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [loadtest.cell0.io]
  resources: [loadtests/status]
  verbs: [patch]
- apiGroups: [loadtest.cell0.io]
  resources: [loadtestresults]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create]
{{- if .Values.networkPolicy.runners }}
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create]
{{- end }}
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [list, create]
{{- end }}

{{/* Who may reach runners: the operator, and those who read metrics. */}}
{{- define "loadtest-operator.runnerPeers" -}}
{{- $namespace := dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace) }}
{{- $pods := dict "matchLabels" (include "loadtest-operator.selectorLabels" . | fromYaml) }}
{{- $operator := dict "namespaceSelector" $namespace "podSelector" $pods }}
{{- prepend .Values.networkPolicy.metricsFrom $operator | toJson }}
{{- end }}

{{- define "loadtest-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "loadtest-operator.serviceAccountName" . | quote }}
  namespace: {{ .Release.Namespace | quote }}
{{- end }}
