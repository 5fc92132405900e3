"""How long a test waits for what must come.

Such a limit is there to end a test that hangs, with the line it hung at; it says nothing about speed. So
it is one number, far beyond what a slow and shared machine takes, and below the limit of a whole test
(pyproject). A test about a time limit of the product gives the product a short limit or a clock of the
test's own, and what it waits for would otherwise never come.
"""

PATIENCE_S = 60.0
