"""What tests of hostile input share: calls that must be refused in words, all tried, the wrong outcomes listed."""

import pickle
import warnings


def outcomes(errors, cases):
    """What happened that should not have: cases are (call, kind of error, words in its message) by name."""
    wrong = []
    for name, (call, kind, says) in cases.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = call()
        except errors.VitLensError as error:
            if type(error).__name__ != kind or says not in str(error):
                wrong.append(f"{name}: {type(error).__name__}: {error}")
        except Exception as error:
            wrong.append(f"{name}: raw {type(error).__name__}: {error}")
        else:
            wrong.append(f"{name}: accepted, {type(found).__name__}")
    return wrong


def pickled(value):
    """What a spawned process gets of a value."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301
