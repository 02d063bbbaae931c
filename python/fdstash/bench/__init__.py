"""Measurements: the engine behind `fdstash bench`.

`reopen.run` reopens an image under a verified load. `cells` says which bytes the
load uses, `content` what they hold, `load` reads and writes them, `schedule` says
which reopens are made, `sabotage` which of them must be refused, `target` and
`naive` carry them out, `result` is what was found and `report` shows it.

`against.match` does so with two storage daemons: `daemons` starts them, `qmp` speaks to
them, `nbd_load` is fio, `against_result` what was found.
"""
