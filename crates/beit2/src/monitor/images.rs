//! Which images are watched.

use std::sync::Arc;

use beit2_data::rng::shuffle;
use beit2_data::source::SubsetSource;
use beit2_data::{Key, RngStream, Source};

use super::config::LEAST_OF_A_CLASS;
use crate::error::{Error, config_error};

/// Images of a folder that are watched.
pub(super) struct Chosen {
    pub(super) source: Arc<dyn Source>,
    /// Their numbers in the folder, ascending.
    pub(super) numbers: Vec<usize>,
    /// The class of each and their number; `None` where they have none, or several at once.
    pub(super) classes: Option<(Vec<u32>, usize)>,
    /// Classes that k-NN cannot be asked about, because they have one image.
    pub(super) alone: usize,
}

/// Chooses up to `most` images, the same ones in every run: of classes an equal number of each, at least
/// [`LEAST_OF_A_CLASS`] where there are as many. `key`: the setting that names them, where their classes are what it is for.
///
/// # Errors
/// A labelled folder in which no class has two images, or in which labels are missing.
pub(super) fn choose(all: Arc<dyn Source>, most: usize, key: Option<&str>) -> Result<Chosen, Error> {
    let labels: Option<Vec<u32>> = match all.classes().len() >= 2 && !all.is_multi_label() {
        true => (0..all.len()).map(|index| all.label(index)).collect(),
        false => None,
    };
    if key.is_some() && !all.classes().is_empty() {
        all.check_labels()?;
    }
    let mut rng = Key { seed: 0, epoch: 0, index: 0, stream: RngStream::Order }.rng();
    let Some(labels) = labels else {
        let mut numbers: Vec<usize> = (0..all.len()).collect();
        shuffle(&mut rng, &mut numbers);
        numbers.truncate(most);
        numbers.sort_unstable();
        let source = Arc::new(SubsetSource::new(all, numbers.clone()));
        return Ok(Chosen { source, numbers, classes: None, alone: 0 });
    };
    let count = all.classes().len();
    let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); count];
    labels.iter().enumerate().for_each(|(number, &label)| of_class[label as usize].push(number));
    let with = |images: usize| of_class.iter().filter(|numbers| numbers.len() == images).count();
    let (empty, alone) = (with(0), with(1));
    if let Some(key) = key
        && empty + alone == count
    {
        return config_error(format!(
            "every class of {key} has one image, so that k-NN has nothing to compare it with; use a folder with several \
             images of each class, or one without class folders"
        ));
    }
    of_class.iter_mut().for_each(|numbers| shuffle(&mut rng, numbers));
    let most = most.max(LEAST_OF_A_CLASS * (count - empty));
    let longest = of_class.iter().map(Vec::len).max().unwrap_or(0);
    let in_turn =
        (0..longest).flat_map(|place| of_class.iter().filter_map(move |numbers| numbers.get(place)));
    let mut numbers: Vec<usize> = in_turn.copied().take(most).collect();
    numbers.sort_unstable();
    let classes = numbers.iter().map(|&number| labels[number]).collect();
    let source = Arc::new(SubsetSource::new(all, numbers.clone()));
    Ok(Chosen { source, numbers, classes: Some((classes, count)), alone })
}

#[cfg(test)]
mod tests {
    use super::*;
    use beit2_data::SourceError;

    /// Images without content, of these classes.
    struct Labels(Vec<u32>, Vec<String>);

    impl Source for Labels {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn read(&self, index: usize) -> Result<Vec<u8>, SourceError> {
            Err(SourceError::Index { index, len: self.len() })
        }
        fn name(&self, index: usize) -> String {
            index.to_string()
        }
        fn label(&self, index: usize) -> Option<u32> {
            self.0.get(index).copied().filter(|_| !self.1.is_empty())
        }
        fn classes(&self) -> &[String] {
            &self.1
        }
        fn fingerprint(&self) -> String {
            String::new()
        }
    }

    fn chosen(labels: &[u32], classes: usize, most: usize) -> Result<Chosen, Error> {
        let names = (0..classes).map(|class| class.to_string()).collect();
        choose(Arc::new(Labels(labels.to_vec(), names)), most, Some("monitor.folder"))
    }

    #[test]
    fn classes_get_equal_numbers() {
        let labels: Vec<u32> = (0..300).map(|at| if at < 280 { 0 } else { 1 + at % 2 }).collect();
        let found = chosen(&labels, 3, 30).unwrap();
        let (classes, number) = found.classes.unwrap();
        let of = |class| classes.iter().filter(|&&found| found == class).count();
        assert_eq!((number, [0, 1, 2].map(of)), (3, [10, 10, 10]));
        assert!(found.numbers.is_sorted());
        assert!(classes.iter().zip(&found.numbers).all(|(class, &number)| *class == labels[number]));
        // At least five of each, although fewer were wanted; of a class with fewer, all.
        let found = chosen(&[0, 0, 0, 0, 0, 0, 0, 1, 1, 2], 3, 2).unwrap();
        assert_eq!((found.numbers.len(), found.alone), (10, 1));
        assert_eq!(chosen(&labels, 3, 30).unwrap().numbers, chosen(&labels, 3, 30).unwrap().numbers);
    }

    #[test]
    fn classes_of_one_image_are_refused() {
        let sentence = chosen(&[0, 1, 2], 3, 30).err().unwrap().to_string();
        assert!(sentence.starts_with("every class of monitor.folder has one image"), "{sentence}");
        let found = chosen(&[0, 0, 0], 0, 2).unwrap();
        assert!(found.classes.is_none() && found.numbers.len() == 2);
    }
}
