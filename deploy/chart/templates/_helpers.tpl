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

{{/* The pod of a gateway or a worker: .root, .component, .args, .resources, .extra (lines of the container), .claim. */}}
{{- define "suffice.pod" -}}
metadata:
  labels:
    {{- include "suffice.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  annotations:
    checksum/config: {{ include "suffice.config" .root | sha256sum }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
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
      {{- with .extra }}
      {{- . | nindent 6 }}
      {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "suffice.name" .root }}
    - name: password
      secret:
        secretName: {{ .root.Values.database.passwordSecret.name }}
        defaultMode: 0440
        items:
          - key: {{ .root.Values.database.passwordSecret.key }}
            path: password
    - name: data # the last-good file and the kill file of this pod; everything else is in the database
      {{- if .claim }}
      persistentVolumeClaim:
        claimName: {{ .claim }}
      {{- else }}
      emptyDir:
        sizeLimit: 256Mi
      {{- end }}
    - name: tmp
      emptyDir:
        sizeLimit: 256Mi
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
