"""Programs that run inside a box; they import nothing of the rest of the package, and the kernel runs none of them.

The programs are `prepare` (what is asked: code, inputs, expected outputs), `answers` (what a solution says, where no
expected output is) and `judge` (EvalPlus's verdicts). `messages` is what they are sent and send back, `pool` runs their
workers, `plain` turns outputs into JSON and back, `patches` makes EvalPlus fit for a box.
"""
