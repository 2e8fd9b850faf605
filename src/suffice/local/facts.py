"""Facts behind the questions of the samples route: data only, written for this project.

It knows countries and capitals, one-sentence reviews with their label, plain words, and small
families of things. It refuses to know how a question is worded (`questions`) and which model
is asked (`tasks`).

A country is listed only if it has one undisputed capital with one usual English spelling in
plain letters; so no Bolivia, Brazil, Indonesia, Netherlands, South Africa or Ukraine. A review
is listed only if nobody would argue about its label.
"""

from __future__ import annotations

from collections.abc import Mapping

CAPITALS: Mapping[str, str] = {
    "Albania": "Tirana", "Algeria": "Algiers", "Angola": "Luanda", "Argentina": "Buenos Aires",
    "Armenia": "Yerevan", "Australia": "Canberra", "Austria": "Vienna", "Azerbaijan": "Baku",
    "Bahrain": "Manama", "Bangladesh": "Dhaka", "Belarus": "Minsk", "Belgium": "Brussels",
    "Bhutan": "Thimphu", "Botswana": "Gaborone", "Bulgaria": "Sofia", "Cambodia": "Phnom Penh",
    "Canada": "Ottawa", "Chile": "Santiago", "China": "Beijing", "Croatia": "Zagreb",
    "Cuba": "Havana", "Cyprus": "Nicosia", "Denmark": "Copenhagen", "Ecuador": "Quito",
    "Egypt": "Cairo", "Estonia": "Tallinn", "Ethiopia": "Addis Ababa", "Fiji": "Suva",
    "Finland": "Helsinki", "France": "Paris", "Georgia": "Tbilisi", "Germany": "Berlin",
    "Ghana": "Accra", "Greece": "Athens", "Guatemala": "Guatemala City", "Honduras": "Tegucigalpa",
    "Hungary": "Budapest", "India": "New Delhi", "Iran": "Tehran", "Iraq": "Baghdad",
    "Ireland": "Dublin", "Italy": "Rome", "Jamaica": "Kingston", "Japan": "Tokyo",
    "Jordan": "Amman", "Kenya": "Nairobi", "Kuwait": "Kuwait City", "Kyrgyzstan": "Bishkek",
    "Laos": "Vientiane", "Latvia": "Riga", "Lebanon": "Beirut", "Liberia": "Monrovia",
    "Libya": "Tripoli", "Lithuania": "Vilnius", "Madagascar": "Antananarivo", "Malawi": "Lilongwe",
    "Mali": "Bamako", "Malta": "Valletta", "Mexico": "Mexico City", "Morocco": "Rabat",
    "Mozambique": "Maputo", "Namibia": "Windhoek", "Nepal": "Kathmandu", "New Zealand": "Wellington",
    "Nicaragua": "Managua", "Niger": "Niamey", "Nigeria": "Abuja", "North Korea": "Pyongyang",
    "Norway": "Oslo", "Oman": "Muscat", "Pakistan": "Islamabad", "Panama": "Panama City",
    "Peru": "Lima", "the Philippines": "Manila", "Poland": "Warsaw", "Portugal": "Lisbon",
    "Qatar": "Doha", "Romania": "Bucharest", "Russia": "Moscow", "Rwanda": "Kigali",
    "Saudi Arabia": "Riyadh", "Senegal": "Dakar", "Serbia": "Belgrade", "Slovakia": "Bratislava",
    "Slovenia": "Ljubljana", "Somalia": "Mogadishu", "South Korea": "Seoul", "Spain": "Madrid",
    "Sudan": "Khartoum", "Sweden": "Stockholm", "Switzerland": "Bern", "Syria": "Damascus",
    "Thailand": "Bangkok", "Tunisia": "Tunis", "Turkey": "Ankara", "Uganda": "Kampala",
    "the United Kingdom": "London", "Uruguay": "Montevideo", "Venezuela": "Caracas",
    "Vietnam": "Hanoi", "Zambia": "Lusaka", "Zimbabwe": "Harare",
}

POSITIVE_REVIEWS: tuple[str, ...] = (
    "The soup was hot, rich and exactly what I wanted.",
    "I laughed from the first scene to the last.",
    "These shoes are the most comfortable I have ever owned.",
    "The staff were kind and solved my problem in five minutes.",
    "A lovely hotel with a clean room and a wonderful view.",
    "The battery easily lasts two days, which is great.",
    "My children adore this game and play it every evening.",
    "Fresh bread, friendly people, fair prices.",
    "The book is so good that I read it in one night.",
    "Delivery came a day early and everything was perfect.",
    "This is the best coffee in town.",
    "The new phone is fast, light and beautiful.",
    "What a charming little theatre; we will come again.",
    "The repair was cheap and the bike rides like new.",
    "I am very happy with this warm and soft jacket.",
    "The guide was funny and knew every corner of the city.",
    "An excellent course that taught me a lot.",
    "The cake was delicious and the portion generous.",
    "Setting it up took one minute and it works flawlessly.",
    "Our room was quiet and we slept wonderfully.",
    "The concert was magical and the sound superb.",
    "I recommend this dentist to everyone; she is gentle and careful.",
    "The garden is gorgeous and perfect for a picnic.",
    "Great value: sturdy, pretty and cheap.",
    "The singer has a beautiful voice and the songs are terrific.",
    "The pizza was crisp and full of flavour.",
    "A brilliant film with a moving end.",
    "The museum was fascinating and the entrance was free.",
    "Customer service answered at once and was very helpful.",
    "I love this lamp; it makes the whole room cosy.",
)

NEGATIVE_REVIEWS: tuple[str, ...] = (
    "The soup was cold and tasted of nothing.",
    "I was so bored that I left before the end.",
    "These shoes hurt and fell apart after a week.",
    "The staff were rude and ignored us for an hour.",
    "A dirty hotel with a broken shower and a terrible smell.",
    "The battery dies after an hour, which is awful.",
    "My children hated this game and threw it away.",
    "Stale bread, unfriendly people, silly prices.",
    "The book is so dull that I gave up after ten pages.",
    "Delivery came three weeks late and the box was crushed.",
    "This is the worst coffee I have ever had.",
    "The new phone is slow, heavy and ugly.",
    "What a horrible theatre; we will never come again.",
    "The repair was expensive and the bike is still broken.",
    "I am very disappointed with this thin and scratchy jacket.",
    "The guide was grumpy and knew nothing about the city.",
    "A useless course that taught me nothing.",
    "The cake was dry and far too sweet, simply disgusting.",
    "Setting it up took all day and it still does not work.",
    "Our room was noisy and we could not sleep at all.",
    "The concert was a disaster and the sound was dreadful.",
    "I warn everyone about this dentist; he is rough and careless.",
    "The garden is full of rubbish and smells bad.",
    "A waste of money: flimsy, ugly and overpriced.",
    "The singer is out of tune and the songs are terrible.",
    "The pizza was burnt and we had to send it back.",
    "A stupid film with a ridiculous end.",
    "The museum was boring and much too expensive.",
    "Customer service never answered and did not help at all.",
    "I regret buying this lamp; it broke on the first day.",
)

WORDS: tuple[str, ...] = (
    "apple", "bread", "cloud", "dance", "eagle", "flower", "garden", "horse", "island", "jacket",
    "kitchen", "lemon", "mountain", "needle", "orange", "pencil", "queen", "river", "silver", "table",
    "uncle", "violin", "window", "yellow", "zebra", "basket", "candle", "dragon", "engine", "forest",
    "guitar", "hammer", "insect", "jungle", "kettle", "ladder", "market", "nature", "office", "planet",
)

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "animal": ("dog", "cat", "horse", "cow", "lion", "rabbit", "tiger", "sheep", "wolf", "bear"),
    "fruit": ("banana", "apple", "pear", "cherry", "grape", "mango", "peach", "plum", "lemon", "melon"),
    "vehicle": ("car", "bus", "train", "truck", "bicycle", "ship", "tram", "van", "taxi", "motorcycle"),
    "colour": ("red", "blue", "green", "yellow", "purple", "white", "black", "pink", "brown", "grey"),
}
