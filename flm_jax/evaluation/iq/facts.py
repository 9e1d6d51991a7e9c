"""Anti-interference: where somebody or something is, in a story of which one fact matters, or two."""

from collections.abc import Mapping, Sequence

from flm_jax.evaluation.iq import words
from flm_jax.evaluation.iq.draws import Draws
from flm_jax.evaluation.iq.items import Space
from flm_jax.evaluation.iq.questions import GAP, Generated, Question

_TEXT = {
    "en": "Story: {story}\nQuestion: Where is {what}?\nAnswer:",
    "zh": "故事：{story}\n问题：{what}在哪里？\n答案：",
}
# Somebody does something with a place or a thing.
_SENTENCE = {"en": "{who} {does} the {what}.", "zh": "{who}{does}{what}。"}
_SPACE = {"en": " ", "zh": ""}


class _World:
    """People who walk between places, take things along and put them down, and the story of it.

    Attributes:
        places: That the story has named, the latest last.
        at: Where each person is who has walked.
        holder: Of each thing that is carried.
        lying: Where each thing is that was put down.
    """

    def __init__(self, draws: Draws, language: str) -> None:
        self._draws, self._language = draws, language
        self._people = draws.sample(words.PEOPLE[language], draws.between(2, 4))
        self._all_places = draws.sample(words.PLACES[language], 6)
        self._things = draws.sample(words.THINGS[language], 3)
        self._story: list[str] = []
        self.places: dict[str, None] = {}
        self.at: dict[str, str] = {}
        self.holder: dict[str, str] = {}
        self.lying: dict[str, str] = {}

    def walk(self) -> None:
        """Somebody goes to another place than where they are."""
        who = self._draws.pick(self._people)
        place = self._draws.pick([place for place in self._all_places if place != self.at.get(who)])
        self._tell(who, words.MOVES, place)
        self.at[who] = place
        self.places.pop(place, None)
        self.places[place] = None

    def handle(self) -> None:
        """Somebody who has walked takes a thing that is there, or puts down one; they walk where nobody can."""
        takes = [
            (who, thing)
            for who in self.at
            for thing in self._things
            if thing not in self.holder and self.lying.get(thing, self.at[who]) == self.at[who]
        ]
        drops = [(who, thing) for thing, who in self.holder.items()]
        if not takes and not drops:
            return self.walk()
        who, thing = self._draws.pick(takes + drops)
        if (who, thing) in drops:
            self._tell(who, words.DROPS, thing)
            self.lying[thing] = self.at[self.holder.pop(thing)]
        else:
            self._tell(who, words.TAKES, thing)
            self.holder[thing] = who
            self.lying.pop(thing, None)
        return None

    def where(self) -> dict[str, str]:
        """The place of each thing that somebody has taken."""
        return {**self.lying, **{thing: self.at[who] for thing, who in self.holder.items()}}

    def question(self, asked: Sequence[str], where: dict[str, str], article: bool) -> Question:
        """Where one of `asked` is; the options are the places that the story names."""
        what, gap = self._draws.pick(asked), GAP[self._language]
        story = _SPACE[self._language].join(self._story)
        places = tuple(self._draws.shuffled([gap + place for place in self.places]))
        named = f"the {what}" if article and self._language == "en" else what
        text = _TEXT[self._language].format(story=story, what=named)
        return Question(
            text, gap + where[what], places, Space((places,)), shallow=gap + list(self.places)[-1]
        )

    def _tell(self, who: str, does: Mapping[str, tuple[str, ...]], what: str) -> None:
        verb = self._draws.pick(does[self._language])
        self._story.append(_SENTENCE[self._language].format(who=who, does=verb, what=what))


def single(draws: Draws, language: str, rule: None = None) -> Question:
    """Three to eight walks of two to four people; where is one of them?"""
    world = _World(draws, language)
    for _ in range(draws.between(3, 8)):
        world.walk()
    if len(world.places) < 2:  # nothing to choose from
        return single(draws, language)
    return world.question(list(world.at), world.at, article=False)


def two(draws: Draws, language: str, rule: None = None) -> Question:
    """Six to twelve walks, takings and puttings-down; where is a thing that was taken?"""
    world = _World(draws, language)
    for _ in range(draws.between(6, 12)):
        world.walk() if draws.uniform() < 0.55 else world.handle()
    if len(world.places) < 2 or not world.where():
        return two(draws, language)
    return world.question(list(world.where()), world.where(), article=True)


SINGLE = Generated("single_fact", "Anti-interference", 300, 3, single)
TWO = Generated("two_facts", "Anti-interference", 300, 3, two)
