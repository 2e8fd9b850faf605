{{- define "suffice.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "suffice.labels" -}}
app.kubernetes.io/name: suffice
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "suffice.selector" -}}
app.kubernetes.io/name: suffice
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "suffice.image" -}}
{{- if .Values.image.digest -}}
{{ printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end -}}
{{- end -}}

{{/* Settings, with what the chart itself decides: workers are pods of their own, the password is a mounted file. */}}
{{- define "suffice.config" -}}
{{- $store := dict "password_file" "/run/secrets/suffice/password" -}}
{{- $own := dict "store" $store "control" (dict "enabled" false) -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.config) $own) -}}
{{- end -}}

{{/* Whole seconds that live streams may take when a gateway ends, and the pod of a gateway or a console with them. */}}
{{- define "suffice.graceSeconds" -}}
{{- add .Values.gateway.preStopSeconds (.Values.config.server.grace_s | default 10 | float64 | ceil | int) 25 -}}
{{- end -}}

{{/* What changes with the Secrets, and says nothing of them; the same where the cluster cannot be asked. */}}
{{- define "suffice.secretVersions" -}}
{{- range list .Values.secretName .Values.database.passwordSecret.name -}}
{{- $secret := lookup "v1" "Secret" $.Release.Namespace . -}}
{{- printf "%s=%s " . (dig "metadata" "resourceVersion" "" $secret) -}}
{{- end -}}
{{- end -}}

{{- define "suffice.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "suffice.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{/* What a path outside the cluster leads to, as YAML: the gateways, and with .console the console. */}}
{{- define "suffice.paths" -}}
{{- $name := include "suffice.name" .root -}}
/: {{ $name }}
{{- if and .console .root.Values.console.enabled }}
/console: {{ $name }}-console
/api: {{ $name }}-console
{{- end }}
{{- end -}}

{{- define "suffice.beforeUpgrade" -}}
helm.sh/hook: pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/*
A pod: .root, .component, .args, .resources, .grace (seconds), .extra (further lines of the container), and for a pod
that ends by itself .name (of its ConfigMap and service account).
*/}}
{{- define "suffice.pod" -}}
metadata:
  labels:
    {{- include "suffice.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with .root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include "suffice.config" .root | sha256sum }}
    checksum/secrets: {{ include "suffice.secretVersions" .root | sha256sum }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ ternary .name (include "suffice.serviceAccount" .root) (and .root.Values.serviceAccount.create (hasKey . "name")) }}
  {{- if .name }}
  restartPolicy: Never
  {{- end }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .grace }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    seccompProfile:
      type: RuntimeDefault
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "suffice.selector" . | nindent 10 }}
  {{- with .root.Values.extraInitContainers }}
  initContainers:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "suffice.image" .root }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      args:
        {{- toYaml .args | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities:
          drop: [ALL]
      envFrom:
        - secretRef:
            name: {{ .root.Values.secretName }}
      env:
        - name: SUFFICE__SERVER__REPLICA
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: SUFFICE__CONSOLE__ENABLED
          value: {{ eq .component "console" | quote }}
        {{- with .root.Values.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      resources:
        {{- toYaml .resources | nindent 8 }}
      volumeMounts:
        - name: config
          mountPath: /etc/suffice
          readOnly: true
        - name: password
          mountPath: /run/secrets/suffice
          readOnly: true
        - name: data
          mountPath: /var/lib/suffice
        - name: tmp
          mountPath: /tmp
        {{- with .root.Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .extra }}
      {{- . | nindent 6 }}
      {{- end }}
    {{- with ternary list .root.Values.extraContainers (hasKey . "name") }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ .name | default (include "suffice.name" .root) }}
    - name: password
      secret:
        secretName: {{ .root.Values.database.passwordSecret.name }}
        defaultMode: 0440
        items:
          - key: {{ .root.Values.database.passwordSecret.key }}
            path: password
    - name: data # the last-good file and the kill file of this pod; everything else is in the database
      emptyDir:
        sizeLimit: 256Mi
    - name: tmp
      emptyDir:
        sizeLimit: 256Mi
    {{- with .root.Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
