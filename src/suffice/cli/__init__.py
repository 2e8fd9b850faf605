"""`suffice`, the command: one module a command, in the sections of `suffice --help`.

    serving    set up and serve: demo, config, doctor, serve, worker, admin
    seeing     see what happens: status, alerts, audit
    changing   change it: policy, experiment, pause and resume, incident, override, kill
    people     hear from people: review, feedback, export, erase
    measuring  measure before you act: estimate, record, replay, tune

`main` holds the table of all commands, `shell` what each of them shares with the shell that calls it, and `deciding`
what commands share by which people decide.
"""
