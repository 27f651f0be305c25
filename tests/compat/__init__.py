"""This release beside the one before: the contract of docs/design.md, "Releases side by side".

What runs the old release's code is here; it runs in processes of its own and speaks bytes.
"""
