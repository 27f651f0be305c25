"""What the kernel's headers declare, in pyroute2's way: message classes and constants.

Names are the headers' own. Nothing here opens a socket or knows what Noctule is; `macsec`
and `batadv` are written to be given to pyroute2.
"""
