"use strict";
// What the words of the pages mean: in tooltips, and on a page of their own.
(() => {
  const { h, link } = THRESHER;

  // where it is asked for (both: two modalities, one: a single one, all) | group | word | what it means
  const WORDS = `
    all | Features | feature | an atom of the dictionary together with the items on which it fires (z is not 0); #12 is its index in the dictionary
    all | Features | z | coefficient of a feature in the code of a row: how strongly it fires
    all | Features | fires on | items of which at least one row has the feature in its code
    all | Features | energy | mean of z squared over all held-out rows, those on which it does not fire too
    all | Features | energy share | share of the energy of all features
    all | Features | nearest atoms | atoms of the largest cosine with this one, whatever they fire on
    all | Features | step | place in the order in which a matching pursuit picks its atoms; the first is step 0
    all | Features | stability | cosine with its match in dictionaries of other seeds; compare with that of random atoms
    both | Classes | shared | fires on both modalities, on the two ends of the same pairs beyond chance, and about the same
    both | Classes | bimodal-polysemantic | fires on both modalities, but on unrelated pairs or about different things
    both | Classes | bridged-collinear | fires on one modality; a feature of the other fires on the same pairs, and their atoms point the same way
    both | Classes | bridged-heterogeneous | fires on one modality; a feature of the other fires on the same pairs, and their atoms point elsewhere
    both | Classes | modality-bias | fires on most rows of one modality and carries the gap between the modalities
    both | Classes | modality-specific | fires on one modality and has no partner on the other
    both | Classes | undecided | the interval of its modality score crosses a threshold; more held-out items would settle it
    both | Classes | rare | fires on too few records to judge
    both | Classes | dead | fires on no held-out row
    one | Statuses | ok | fires often enough to be measured
    one | Statuses | dense | fires on a large share of the rows; such features often say little about what is in them
    one | Statuses | rare | fires on few records, or its energy rests on few items: numbers about it are uncertain
    one | Statuses | dead | fires on no held-out row
    both | Evidence | modality score | energy on images over the sum of the energies on images and on texts: 1 is image, 0 is text, 0.5 is both alike
    both | Evidence | score by count | the same of how often it fires, whatever the strength
    both | Evidence | rho | correlation over pairs between the feature on the image and the feature (itself or another) on its caption
    both | Evidence | q | chance that so strong a correlation comes of pairs at random, corrected for the number of tests; small is evidence
    both | Evidence | meaning z | how much more alike its images and its texts are than random ones, in standard deviations
    both | Evidence | agreement | cosine between what it is about on images and what it is about on texts
    both | Evidence | by chance | number expected were images given the captions of other records: what the count would be without anything shared
    both | Evidence | worth equal items | effective sample size: how many items of equal energy its energy is worth
    both | Evidence | gate | a test that a feature passes or fails on the way to its class; pairing and meaning make a feature of both modalities shared
    both | Between modalities | partner | feature that fires on the other ends of the same pairs; mutual: each is the other's best
    both | Between modalities | cos | cosine of two atoms: 1 the same direction, 0 unrelated
    both | Between modalities | Bc | contribution of a feature on images with one on texts to the contrastive margin; all Bc sum to the margin
    both | Between modalities | margin | contrastive margin: mean similarity of matched image and text, less that of images and texts at random
    both | Between modalities | gap | difference between the mean image and the mean text; its share is how much of the gap lies along a feature
    both | Between modalities | bridges | two features, one on images and one on texts, that fire on the same pairs
    both | Between modalities | phi | correlation of firing with a concept of the ground truth
    both | Whole dictionary | shared | in the table of all dictionaries: share of alive features whose modality score is between the thresholds; "shared, all gates" is the class
    both | Whole dictionary | image-only | share of alive features with a modality score above the upper threshold
    both | Whole dictionary | text-only | share of alive features with a modality score below the lower threshold
    both | Whole dictionary | R@1 | share of held-out items whose own partner is the nearest after reconstruction; in brackets, of the activations themselves
    both | Whole dictionary | zero-shot | accuracy of classifying images by the nearest text of a class after reconstruction; in brackets, of the activations themselves
    both | Whole dictionary | precision | of the features called so, the share for which it is true of the concept that they track
    both | Whole dictionary | recall | of the concepts for which it is true, the share tracked by a feature called so
    both | Whole dictionary | bridged | features of the classes bridged-collinear and bridged-heterogeneous
    all | Whole dictionary | L0 | different active atoms per row; compare dictionaries at equal L0 only
    all | Whole dictionary | R2 | share of the variance around the mean that the reconstruction explains; predicting the mean scores 0
    all | Whole dictionary | FVU | share of the variance that is left: one minus R2
    all | Whole dictionary | cosine | mean cosine of a row with its reconstruction
    all | Whole dictionary | cosine of the mean | the same for the mean in place of the reconstruction: the floor
    all | Whole dictionary | alive | fires on at least one held-out row
    one | Whole dictionary | loss | next-token loss of the model, nats per token: clean, with the reconstruction spliced in, with zeros, with the mean row in its place
    one | Whole dictionary | recovered | share of the damage that zeros, or the mean row, do to the loss that the reconstruction avoids; 1 is none left
    all | Whole dictionary | interval | 95 %, from resampling the held-out records`.trim().split("\n").map(line => {
    const [where, group, word, ...about] = line.split(" | ").map(part => part.trim());
    return { where, group, word, about: about.join(" | ") };
  });
  const known = () => WORDS.filter(({ where }) => where === "all" || (where === "one") === THRESHER.isSingle);

  // The word with which a label begins; `group` where a word means different things.
  THRESHER.about = (label, group) => {
    const text = label.trim().toLowerCase();
    const fits = known().filter(one => (!group || one.group === group) && text.startsWith(one.word.toLowerCase()) && !/[\w-]/.test(text[one.word.length] || ""));
    return fits.length ? fits.reduce((best, one) => (one.word.length > best.word.length ? one : best)).about : null;
  };
  THRESHER.term = (label, group) => { const about = THRESHER.about(label, group); return about ? h("span", { class: "term", title: about }, label) : label; };

  THRESHER.views.words = async main => {
    const words = known(), groups = [...new Set(words.map(one => one.group))];
    main.append(
      h("h1", {}, "What the words mean"),
      h("p", { class: "soft" }, "Words with a dotted line say the same when the pointer rests on them." + (THRESHER.isSingle ? "" : " The page of each feature has the thresholds of this run.")),
      ...groups.map(group => h("section", { class: "card" }, h("h2", {}, group), h("dl", { class: "facts words" }, words.filter(one => one.group === group).map(({ word, about }) => [h("dt", {}, group === "Classes" || group === "Statuses" ? THRESHER.chip(word) : word), h("dd", {}, about)])))),
      h("p", {}, h("a", { href: link("overview") }, "Overview")));
  };
})();
