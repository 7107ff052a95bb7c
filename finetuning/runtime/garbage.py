"""When Python looks for garbage: not while modules are imported, and never among what they have made.

Of half a million objects of torch and Lightning hardly anything is garbage. Looking for it again and again took a quarter of
the CPU time in which a worker starts (docs/log.md, 2026-11-29), and would take time in every training afterwards.
"""

import gc


def begin_imports() -> None:
    gc.disable()


def end_imports() -> None:
    """Garbage is looked for again, among what is made from here on."""
    gc.freeze()
    gc.enable()
