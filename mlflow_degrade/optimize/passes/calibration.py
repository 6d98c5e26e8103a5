"""Activations of a float model on real texts: what enters its matrix products.

Passes that round with the data in mind (GPTQ, static int8) look at a model from outside: the
tensors they ask for become outputs of a copy of its graph, and the texts run through it one at a
time and unpadded, so that no padding is ever counted. The weights stay in the model's own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError
from ...engine.engine_graph import DerivedGraph
from ...engine.family import is_decoder
from ...engine.one_text import one_text
from ...engine.providers import CPU
from ...engine.session import open_derived, read_json, run_error
from ...engine.tokenization import EncoderText
from ..onnx_graph.files import load_graph

# Texts on which activations are observed, for passes that round with them in mind.

CALIBRATION_PROMPTS: tuple[str, ...] = (
    "The lighthouse was built on the outermost rock, and for eighty years its keeper rowed home "
    "only once a month, when the weather allowed it.",
    "Question: A train leaves at ten past four and arrives fifty minutes later. When does it "
    "arrive?\nAnswer: Ten past four plus fifty minutes is five o'clock.",
    "def clamp(value, low, high):\n    if value < low:\n        return low\n"
    "    return min(value, high)\n",
    "Bread rises because yeast turns sugar into carbon dioxide, which the dough holds in small "
    "bubbles.",
    '"Are you coming with us tomorrow?" he asked.\n"Only if it stops raining," said his sister.',
    "To do: call the plumber, renew the passport, return the library books, water the tomatoes, "
    "buy stamps.",
    "Dear Ms Okafor, thank you for your application. We would like to invite you to an interview "
    "on Thursday at eleven. Please bring your certificates.",
    "Which of these animals lays eggs?\nA. bat\nB. whale\nC. ostrich\nD. otter\nAnswer: C",
    "Die Bibliothek schließt heute um sechs Uhr. La bibliothèque ferme aujourd'hui à six heures. "
    "La biblioteca cierra hoy a las seis.",
    '{"order": 4417, "items": [{"sku": "A-12", "count": 3}, {"sku": "B-07", "count": 1}], '
    '"paid": false}',
    "The experiment was repeated with three different solvents, and only in the last of them did "
    "the crystals dissolve completely.",
    "A quarter of the audience left before the interval; those who stayed applauded for ten "
    "minutes.",
    "for i, row in enumerate(table):\n    if not row:\n        continue\n"
    "    print(i, ', '.join(str(cell) for cell in row))\n",
    "Mix the flour with a pinch of salt, rub in the butter, add cold water by the spoonful, and "
    "let the pastry rest for half an hour.",
    "The court found that the tenant had paid the rent in time and that the notice was void.",
    "Question: Why does ice float on water?\nAnswer: Water expands when it freezes, so ice is less "
    "dense than the water around it.",
    "She had never liked the painting, but when the wall behind it was bare she missed it every "
    "morning.",
    "Turn left at the church, follow the canal as far as the second bridge, and you will see the "
    "workshop on the other side.",
    "SELECT name, COUNT(*) AS visits FROM guests WHERE year >= 2015 GROUP BY name ORDER BY visits "
    "DESC;",
    "The average of 4, 8 and 15 is 9, because their sum is 27 and there are three of them.",
    "Our flight was cancelled, the hotel was full, and the only taxi in town had a flat tyre; it "
    "was the best holiday we ever had.",
    "Translate into French: The dog sleeps under the table.\nLe chien dort sous la table.",
    "Symptoms usually appear within two days and last for about a week; most patients recover "
    "without treatment.",
    "Volunteers counted 312 seabirds on the western cliffs, 40 fewer than in the year before.",
    "Once upon a time a miller had three sons, a mill, a donkey and a cat, and when he died the "
    "sons divided what there was.",
    "The committee will meet on the first Monday of each month, except in August, at half past "
    "seven in the town hall.",
    "Premise: A woman is slicing carrots.\nHypothesis: Somebody is preparing food.\n"
    "Answer: entailment",
    "Light takes about eight minutes from the Sun to the Earth and a little over one second from "
    "the Moon.",
    "class Stack:\n    def __init__(self):\n        self._items = []\n\n"
    "    def push(self, item):\n        self._items.append(item)\n",
    "The film is far too long, the jokes are old, and yet I laughed more than I have in years.",
    "A good knife should be heavy enough to do the work and light enough to be guided by two "
    "fingers.",
    "Rain is expected in the north by the evening, while the south stays dry with temperatures "
    "of up to 24 degrees.",
    "The defenders cleared the ball twice, but from the third corner the captain scored with her "
    "head.",
    "User: My printer says 'offline' although it is switched on.\nAssistant: Please check whether "
    "the computer and the printer are in the same network, then restart the queue.",
    "Copper conducts electricity better than iron, which is why cables are made of it.",
    "Il treno per Bologna parte dal binario sette. De trein naar Utrecht vertrekt van spoor vijf.",
    "Three of the five bridges were rebuilt after the flood, one was replaced by a ferry, and the "
    "oldest was left as a ruin.",
    "Section 4.2: The supplier shall inform the customer in writing of any delay that exceeds ten "
    "working days.",
    "He tuned the violin by ear, played two scales, frowned, and tuned it again.",
    "Fill in the word: The opposite of generous is ___.\nAnswer: stingy",
    "Bees tell each other where flowers are by dancing on the comb; the angle of the dance gives "
    "the direction.",
    "Prices rose by 2.4 percent in May, less than analysts had predicted, and the currency gained "
    "slightly.",
    "We propose a simple method that needs no training data, compare it with four baselines, and "
    "release our code.",
    "The old man in the yellow boat waved at us, shouted something we could not hear, and started "
    "his engine.",
    "if (count > 0 && !queue.empty()) {\n    auto next = queue.front();\n    queue.pop();\n"
    "    process(next);\n}\n",
    "A triangle with sides of 3, 4 and 5 metres has a right angle and an area of 6 square metres.",
    "Review: The shoes look nice, but the sole came off after two weeks.\nSentiment: negative",
    "The monastery owned vineyards on both banks of the river until they were sold to pay for a "
    "new roof.",
    "Vaccines train the immune system by showing it a harmless part of what it should recognize.",
    "Tomorrow's menu: lentil soup, baked aubergine with yoghurt, rice pudding with cinnamon.",
    "Please do not feed the ducks: bread makes them ill and attracts rats.",
    "Q: How many minutes are there in a day?\nA: 24 hours times 60 minutes make 1440 minutes.",
    "The novelist wrote standing up, in pencil, and never more than five hundred words a day.",
    "Most volcanoes lie where two plates of the Earth's crust meet or drift apart.",
    'git commit -m "Fix rounding of negative totals"\ngit push origin main',
    "The nurse changed the bandage, wrote down the temperature and opened the window a little.",
    "Sentence: The children goes to school.\nCorrected: The children go to school.",
    "An employee who works part-time is entitled to the same hourly pay as a full-time one.",
    "From the tower you can see the harbour, the market with its striped roofs, and on clear days "
    "the islands.",
    "The recipe serves four; for a larger party double everything except the salt.",
    "Plants breathe too: at night, without light, they take in oxygen and give off carbon dioxide.",
    "import json\n\nwith open('settings.json') as file:\n    settings = json.load(file)\n"
    "print(settings.get('language', 'en'))\n",
    "Nobody knew who had sent the flowers, least of all the person who had ordered them.",
    "The orchestra plays on instruments of the period, without vibrato and a semitone lower than "
    "usual.",
    "Warning: this product contains nuts. Store in a dry place and consume within three days of "
    "opening.",
    "Summary: The council has approved the new tram line. Work begins in spring and takes two "
    "years; three stops will be closed meanwhile.",
    "Which planet is the largest?\nA. Mars\nB. Jupiter\nC. Venus\nD. Mercury\nAnswer: B",
    "Glass is made by melting sand with soda and lime; a little iron in the sand turns it green.",
    "My grandmother kept buttons in a tin, sorted by nothing, and always found the one she wanted.",
    "Der Schlüssel liegt unter der dritten Stufe. La llave está debajo del tercer escalón. "
    "La chiave è sotto il terzo gradino.",
    "The patient's blood pressure was 128 over 82, her pulse 71, and she had no fever.",
    "Migrating geese fly in a V because each bird is helped by the rising air beside the one in "
    "front.",
    "<ul>\n  <li>Opening hours</li>\n  <li>How to find us</li>\n  <li>Contact</li>\n</ul>",
    "Under the new rules a charge can be refunded within fourteen days, provided that the service "
    "has not been used.",
    "He counted the coins twice: seven silver, four copper, and one that was not a coin at all.",
    "Soap works because one end of its molecule clings to water and the other to grease.",
    "Complete the analogy: finger is to hand as toe is to foot.",
    "The bus was late, so they walked, and halfway up the hill the bus went past them.",
    "Astronomers measure the distance of near stars by how far they seem to move within half a "
    "year.",
    "Name: Ines Moreira\nAge: 34\nOccupation: electrician\nHobbies: climbing, chess, baking",
    "It is cheaper to repair the boiler now than to replace the floor after it has leaked.",
    "The tide comes in faster than one can walk; do not cross the sands without a guide.",
    "A loan of 1,200 at five percent a year costs 60 in the first year.",
    "Sure, I can help with that. First open the settings, then choose 'Accounts' and press 'Add'.",
    "In the eleventh century merchants from the coast brought silk, pepper and paper to the fairs "
    "of the north.",
    "The second paragraph repeats the first; shorten it, and move the figure to the next page.",
    "Moss grows where it is damp and shady, not always on the northern side of a tree.",
    "Wer anderen eine Grube gräbt, fällt selbst hinein. Petit à petit, l'oiseau fait son nid.",
    "Is this sentence about sport, politics or science? 'The goalkeeper signed for two more "
    "seasons.' Answer: sport",
    "After the storm the beach was covered with driftwood, nets, a single boot and thousands of "
    "shells.",
    "Sugar dissolves faster in hot tea than in cold, and faster still when it is stirred.",
    "x = 3\ny = x ** 2 + 1\nassert y == 10\n",
    "The jury praised the building for its daylight, its quiet rooms and its modest cost.",
    "They agreed to split the bill, except for the champagne, which nobody admitted to having "
    "ordered.",
    "Fossils of the same fern have been found in South America, Africa, India and Antarctica.",
    "Press and hold the button for five seconds until the light blinks twice, then release it.",
)
"""Ninety-six short texts, about three thousand tokens in all."""


MIN_TOKENS = 256
"""Fewest tokens that say anything about the distribution of an activation."""

_MAX_TOKENS = 256  # of one text: what is observed is kept whole for as long as the text runs
_HESSIAN_BYTES = 1 << 30  # of sums that are held at once; more layers take more passes
_ROWS = 1024  # tokens that are gathered before a product: small products waste the cores


class Calibration:
    """A float model directory and the texts on which it is observed."""

    def __init__(self, directory: str | Path, texts: Sequence[str] | None = None) -> None:
        self.directory = Path(directory)
        chosen = calibration_texts(texts)
        self._ids = _tokenize(self.directory, chosen)
        self.n_tokens = sum(map(len, self._ids))
        if self.n_tokens < MIN_TOKENS:
            raise InputError(
                f"the {len(chosen)} calibration texts have {self.n_tokens} tokens, the least is "
                f"{MIN_TOKENS}: give more texts, of the kind that the model will read."
            )

    def observe(self, names: Sequence[str]) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        """Values of some tensors of the graph, text by text."""
        from onnx import TensorProto, helper

        model = load_graph(self.directory, weights=False)
        given = {value.name for value in model.graph.output}
        for name in names:
            if name not in given:
                value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
                model.graph.output.append(value)
        derived = DerivedGraph(model.SerializeToString(), self.directory, "", False)
        session = open_derived(derived, (CPU,))
        for ids in self._ids:
            feeds = one_text(session, self.directory, ids)
            try:
                found = session.run(list(names), feeds)
            except Exception as error:
                raise run_error(error, self.directory) from error
            yield {
                name: value.reshape(-1, value.shape[-1])
                for name, value in zip(names, found, strict=True)
                if value.size
            }

    def second_moments(
        self, widths: Mapping[str, int]
    ) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Mean outer product of each tensor's rows with themselves."""
        waiting = list(widths)
        while waiting:
            group, size = [waiting.pop(0)], 0
            size = 8 * widths[group[0]] ** 2
            while waiting and size + 8 * widths[waiting[0]] ** 2 <= _HESSIAN_BYTES:
                size += 8 * widths[waiting[0]] ** 2
                group.append(waiting.pop(0))
            yield from self._moments(group, widths)

    def _moments(
        self, group: list[str], widths: Mapping[str, int]
    ) -> Iterator[tuple[str, NDArray[np.float64]]]:
        sums = {name: np.zeros((widths[name],) * 2) for name in group}
        held: dict[str, list[NDArray[np.float32]]] = {name: [] for name in group}
        count = 0

        def add() -> None:
            for name, parts in held.items():
                if parts:
                    rows = np.concatenate(parts)
                    sums[name] += rows.T @ rows
                    parts.clear()

        for values in self.observe(group):
            for name, rows in values.items():
                held[name].append(rows)
            count += max(map(len, values.values()), default=0)
            if count >= _ROWS:
                add()
                count = 0
        if count:
            add()
        for name in group:
            yield name, sums.pop(name) / self.n_tokens


def calibration_texts(texts: Sequence[str] | None = None) -> tuple[str, ...]:
    """The texts to calibrate on: the given ones, or the package's own."""
    chosen = CALIBRATION_PROMPTS if texts is None else tuple(texts)
    if not chosen:
        raise InputError(
            "the calibration set is empty: give texts of the kind that the model will read, or "
            "None for the package's own."
        )
    return chosen


def _tokenize(directory: Path, texts: Sequence[str]) -> list[NDArray[np.int64]]:
    config = read_json(directory, "config.json", needed=True)
    if is_decoder(directory):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        ids = tokenizer(list(texts), verbose=False)["input_ids"]
        limit = int(config.get("max_position_embeddings") or _MAX_TOKENS)
    else:
        text = EncoderText(directory, config)
        ids, limit = text.encode(texts)[0], text.max_length
    limit = min(limit, _MAX_TOKENS)
    return [np.asarray(i[:limit], np.int64) for i in ids if len(i) > 0]
