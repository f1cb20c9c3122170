"""Whole clusters in virtual time: real controllers, workers and clients, seeded faults, and what must hold whatever
happens.

    engine      what workers compute with: deterministic answers, a step at a time
    faults      what befalls a cluster, as a plan that can be printed
    load        who asks what, when, and what becomes of it
    cluster     the machines and the processes on them
    invariants  what must hold, at every moment and at the end
    history     one seed's cluster from its start to its end
    soak        many of them: `python -m llava_grpc.testing.histories.soak`
"""
