"""A drill: load, faults, and a verdict on what the fleet promised meanwhile.

    workload ─┐
    faults  ──┼─▶ history ─▶ account ─▶ checker ─▶ report (timeline)
    watch   ──┘

`scenarios` says what is done and when, `run` does it. History, checker and report know nothing of a running
fleet: the simulation, the live tests and the demo use them, too.
"""
