"""The process itself: its lock, threads, tasks and open files, and the service manager.

What may live here: what any long-running process needs, whatever it does. What may not: anything
that knows of containers, nodes or policy.
"""
