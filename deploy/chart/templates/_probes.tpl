{{- define "suffice.probes" -}}
ports:
  - name: http
    containerPort: 8400
startupProbe: # a large log may take a while to open
  httpGet:
    path: /healthz
    port: http
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /healthz
    port: http
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: http
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 2
lifecycle:
  preStop:
    exec:
      command: [sleep, {{ .Values.gateway.preStopSeconds | quote }}]
{{- end -}}
{{- define "suffice.workerProbes" -}}
ports:
  - name: health
    containerPort: 8401
livenessProbe: # a look may take minutes; it ends a worker that hangs
  httpGet:
    path: /healthz
    port: health
  initialDelaySeconds: 60
  periodSeconds: 30
  timeoutSeconds: 5
  failureThreshold: 4
readinessProbe:
  httpGet:
    path: /readyz
    port: health
  periodSeconds: 10
  timeoutSeconds: 5
{{- end -}}
