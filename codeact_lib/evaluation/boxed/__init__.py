"""Programs that run inside a box; they import nothing of the rest of the package, and the kernel runs none of them.

`enter` makes the box from within and starts a program in it. The programs are `prepare` (what is asked: code, inputs,
expected outputs), `answers` (what a solution says, where no expected output is) and `judge` (EvalPlus's verdicts);
`crew` feeds their workers, `plain` turns outputs into JSON and back.
"""
