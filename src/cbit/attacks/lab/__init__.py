"""The bench that attacks are run on: who may do what, what was planted, what came out.

    an experiment    prepare(stand) -> Scene: a victim with planted secrets          trusted
                     attempt(hands, scene.facts, log) -> bytes: all that it got       the adversary
    the judge        looks for the planted secrets in those bytes, and nowhere else

``hands`` gives exactly the powers that the experiment declares.
"""
