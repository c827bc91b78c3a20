"""Knowledge: are rare names drawn later than common ones, and is what a name means looked up in one place?"""

from vit_lens.lazy import lazy

__all__, __getattr__, __dir__ = lazy(__name__, {"HEADLINES": ".study", "knowledge_study": ".study"})
