"""Ends a running thought inside vLLM.

    gateway ──POST /v1/chat/completions/control──▶ control.ControlEndpoint (API server)
                                                     │ one line over a Unix socket
                                                     ▼
                                                   channel.Listener (each worker) ──▶ runs.RunTable
                                                                                        ▲ each step
                                                                v1.EndThoughtV1 or v2.EndThoughtV2

A request names its run in `vllm_xargs`: {"suffice_run": name, "suffice_text": what ends its thought, "suffice_tag": the
closing tag alone}.
"""
