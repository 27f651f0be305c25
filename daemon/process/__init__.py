"""This process: its lock, its threads and tasks, its files, and the service manager.

What may live here: what any long-running process needs, whatever it does. What may not: anything
that knows of containers, nodes or policy.
"""
