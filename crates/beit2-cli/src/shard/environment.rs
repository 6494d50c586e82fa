//! Which part a task does, as the scheduler that started it says.
//!
//! | who             | part                               | parts                                                    |
//! |-----------------|------------------------------------|----------------------------------------------------------|
//! | Slurm's arrays  | `SLURM_ARRAY_TASK_ID`              | `SLURM_ARRAY_TASK_COUNT`, from `_MIN` on by `_STEP`       |
//! | Kubernetes      | `JOB_COMPLETION_INDEX`             | `JOB_COMPLETION_COUNT`, which the job's manifest has to set |
//! | torchrun        | `RANK`                             | `WORLD_SIZE`                                             |

use super::Shard;

/// A part, and how a scheduler counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Task {
    /// The part.
    pub shard: Shard,
    /// Number of the task that does part 0.
    pub first: u64,
    /// From the number of a task to the next one's.
    pub step: u64,
}

impl Task {
    /// Counted as parts are.
    pub fn plain(shard: Shard) -> Self {
        Self { shard, first: 0, step: 1 }
    }
}

/// What variables say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The variables with their values, for a sentence that goes on with a comma.
    pub by: String,
    /// Number of the task.
    pub id: u64,
    /// Whether tasks can be run again by themselves, with other variables (Slurm).
    pub is_array: bool,
    first: u64,
    step: u64,
    count: u64,
    /// Why the variables do not say how many parts there are.
    unknown: Option<String>,
}

impl Told {
    /// Whether there is more than one part.
    pub fn is_divided(&self) -> bool {
        self.count > 1
    }

    /// The part.
    ///
    /// # Errors
    /// Numbers that fit to no part.
    pub fn task(&self) -> Result<Task, String> {
        if let Some(why) = &self.unknown {
            return Err(why.clone());
        }
        let place = self.place(self.first, self.step);
        let shard = place.and_then(|place| Shard::new(place, self.count).ok());
        match shard {
            Some(shard) => Ok(Task { shard, first: self.first, step: self.step }),
            None => Err(format!("{}, which is no part; say it with --shard I/N", self.by)),
        }
    }

    /// The part of a task where they are counted like this.
    pub fn place(&self, first: u64, step: u64) -> Option<u64> {
        let above = self.id.checked_sub(first)?;
        (step > 0 && above.is_multiple_of(step)).then(|| above / step)
    }
}

/// Reads the variables.
///
/// # Errors
/// A sentence where they are no numbers, are incomplete, or two schedulers say different parts.
pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Option<Told>, String> {
    let number = |name: &str| match get(name).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => match text.parse::<u64>() {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(format!("{name} is `{text}`, which is no number; say the part with --shard I/N")),
        },
    };
    let mut all = Vec::new();
    if let Some(id) = number("SLURM_ARRAY_TASK_ID")? {
        let count = number("SLURM_ARRAY_TASK_COUNT")?;
        let first = number("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
        let step = number("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
        let last = number("SLURM_ARRAY_TASK_MAX")?;
        let by = format!("SLURM_ARRAY_TASK_ID is {id}");
        let gaps =
            count.zip(last).is_some_and(|(count, last)| last.saturating_sub(first) / step + 1 != count);
        let unknown = match count {
            None => {
                Some(format!("{by}, but SLURM_ARRAY_TASK_COUNT is not set; say the part with --shard I/N"))
            }
            Some(_) if gaps => Some(format!(
                "{by} in an array with gaps, which does not say how many parts there are; say it with --shard \
                 $SLURM_ARRAY_TASK_ID/N"
            )),
            Some(_) => None,
        };
        let by = match last {
            Some(last) => format!("{by} in the array {first}-{last}"),
            None => by,
        };
        all.push(Told { by, id, is_array: true, first, step, count: count.unwrap_or(0), unknown });
    }
    if let Some(id) = number("JOB_COMPLETION_INDEX")? {
        let count = number("JOB_COMPLETION_COUNT")?;
        let by = format!("JOB_COMPLETION_INDEX is {id}");
        let unknown = count.is_none().then(|| {
            format!(
                "{by}, which does not say of how many; set JOB_COMPLETION_COUNT to the job's completions, or give --shard {id}/N"
            )
        });
        let by = count.map_or(by.clone(), |count| format!("{by} of JOB_COMPLETION_COUNT {count}"));
        all.push(Told { by, id, is_array: false, first: 0, step: 1, count: count.unwrap_or(0), unknown });
    }
    // Other programs set RANK alone for purposes of their own.
    if let (Some(id), Some(count)) = (number("RANK")?, number("WORLD_SIZE")?) {
        let by = format!("RANK is {id} of WORLD_SIZE {count}");
        all.push(Told { by, id, is_array: false, first: 0, step: 1, count, unknown: None });
    }
    match all.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one.clone())),
        [one, rest @ ..] => {
            let same = |other: &Told| {
                other.task().is_ok_and(|task| one.task().is_ok_and(|own| own.shard == task.shard))
            };
            if rest.iter().all(same) {
                return Ok(Some(one.clone()));
            }
            let by: Vec<&str> = all.iter().map(|told| told.by.as_str()).collect();
            Err(format!("{}: these are different parts; say which with --shard I/N", by.join(", and ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(variables: &[(&str, &str)]) -> Result<Option<Told>, String> {
        read(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned()))
    }

    fn shard(variables: &[(&str, &str)]) -> Result<String, String> {
        let task = told(variables)?.ok_or("nothing")?.task()?;
        Ok(task.shard.to_string())
    }

    fn slurm(id: &'static str, rest: [&'static str; 4]) -> Vec<(&'static str, &'static str)> {
        let [count, min, max, step] = rest;
        vec![
            ("SLURM_ARRAY_TASK_ID", id),
            ("SLURM_ARRAY_TASK_COUNT", count),
            ("SLURM_ARRAY_TASK_MIN", min),
            ("SLURM_ARRAY_TASK_MAX", max),
            ("SLURM_ARRAY_TASK_STEP", step),
        ]
    }

    #[test]
    fn each_scheduler_says_its_part() {
        assert_eq!(shard(&slurm("3", ["8", "0", "7", "1"])).unwrap(), "3/8");
        assert_eq!(shard(&slurm("8", ["8", "1", "8", "1"])).unwrap(), "7/8");
        assert_eq!(shard(&slurm("14", ["4", "2", "14", "4"])).unwrap(), "3/4");
        let kubernetes = [("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETION_COUNT", "2")];
        assert_eq!(shard(&kubernetes).unwrap(), "0/2");
        assert_eq!(shard(&[("RANK", "5"), ("WORLD_SIZE", "6")]).unwrap(), "5/6");
        assert_eq!(told(&[]), Ok(None));
        assert_eq!(told(&[("RANK", "5")]), Ok(None), "somebody else's RANK");
        assert_eq!(told(&[("SLURM_ARRAY_TASK_ID", ""), ("RANK", "")]), Ok(None));
        // A job with the variables of two that agree.
        let both = [slurm("1", ["2", "0", "1", "1"]), vec![("RANK", "1"), ("WORLD_SIZE", "2")]].concat();
        assert_eq!(shard(&both).unwrap(), "1/2");
    }

    #[test]
    fn what_says_no_part_is_an_error() {
        let gaps = slurm("7", ["4", "3", "9", "1"]);
        let both = [slurm("1", ["2", "0", "1", "1"]), vec![("RANK", "0"), ("WORLD_SIZE", "4")]].concat();
        for (variables, why) in [
            (gaps, "with gaps"),
            (vec![("SLURM_ARRAY_TASK_ID", "3")], "SLURM_ARRAY_TASK_COUNT is not set"),
            (vec![("JOB_COMPLETION_INDEX", "3")], "--shard 3/N"),
            (vec![("RANK", "x"), ("WORLD_SIZE", "2")], "RANK is `x`"),
            (vec![("RANK", "-1"), ("WORLD_SIZE", "2")], "no number"),
            (vec![("RANK", "2"), ("WORLD_SIZE", "2")], "no part"),
            (vec![("RANK", "0"), ("WORLD_SIZE", "0")], "no part"),
            (slurm("3", ["2", "2", "4", "2"]), "no part"),
            (both, "different parts"),
        ] {
            let found = shard(&variables).unwrap_err();
            assert!(found.contains(why), "{variables:?}: {found}");
        }
    }
}
